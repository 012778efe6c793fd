//! The workspace, held against `arrows.txt`.

use std::path::Path;

use tests_arrows::{Rules, check, read_tree};

#[test]
fn the_workspace_has_these_arrows_and_no_others() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).expect("two folders below the root");
    let text = std::fs::read_to_string(here.join("arrows.txt")).expect("arrows.txt");
    let rules = Rules::parse(&text).expect("rules");
    let tree = read_tree(root).expect("the workspace");
    assert!(tree.packages.len() > 10, "the workspace was read: {:?}", tree.packages.len());
    let violations: Vec<String> = check(&rules, &tree).iter().map(ToString::to_string).collect();
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}
