//! `key create`, `key ls`, `key rm`.

use gateway_sdk::{Client, v1};

use super::sandboxes::Removed;
use crate::args::{KeyArgs, KeyCommand};
use crate::exit::{EXIT_OK, Failure};
use crate::output::{Output, table};

pub(super) async fn key(args: KeyArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    match args.command {
        KeyCommand::Create { name } => {
            let key = client.create_key(&name).await?;
            output.result(&key, || key.key.clone())?;
            if output.is_interactive() {
                output.remark("this is the only time that the key is shown");
            }
            Ok(EXIT_OK)
        }
        KeyCommand::Ls => {
            let list = client.keys().await?;
            output.result(&list, || rows(&list))?;
            Ok(EXIT_OK)
        }
        KeyCommand::Rm { keys } => {
            let mut removed = Removed::default();
            for key in keys {
                let done = client.remove_key(&key).await;
                removed.note(key, done, output);
            }
            removed.finish(output)
        }
    }
}

fn rows(list: &v1::KeyList) -> String {
    let row =
        |key: &v1::Key| vec![key.id.clone(), key.name.clone(), format!("{}...", key.shown), key.created_at.clone()];
    let rows: Vec<_> = list.items.iter().map(row).collect();
    table(&["ID", "NAME", "KEY", "CREATED"], &rows)
}
