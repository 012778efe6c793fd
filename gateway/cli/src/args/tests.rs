//! What can be typed and what is refused.

use clap::{CommandFactory as _, Parser};

use super::values::ShapeArg;
use super::*;

#[derive(Debug, Parser)]
#[command(name = "atoll")]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: ClientCommand,
}

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

fn exit_code(line: &str) -> i32 {
    parse(line).expect_err(line).exit_code()
}

#[test]
fn the_definition_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn create_takes_its_flags() {
    let cli = parse(
        "atoll create --region iad --name w --label a=b --label c=d=e --env X= --shape 2x2048x5 --timeout 9 --json",
    )
    .expect("a command");
    let ClientCommand::Create(args) = cli.command else { panic!("{:?}", cli.command) };
    assert!(cli.global.json);
    assert_eq!(args.new.region.as_deref(), Some("iad"));
    assert_eq!(args.new.labels[1], KeyValue { key: "c".into(), value: "d=e".into() });
    assert_eq!(args.new.env[0], KeyValue { key: "X".into(), value: String::new() });
    assert_eq!(args.new.shape, Some(ShapeArg { cpu: Some(2), memory_mib: Some(2048), disk_gib: Some(5) }));
    assert_eq!(args.timeout, Some(9));
}

#[test]
fn shapes_have_two_forms() {
    let half = "memory=512".parse::<ShapeArg>().expect("a shape");
    assert_eq!(half, ShapeArg { cpu: None, memory_mib: Some(512), disk_gib: None });
    assert_eq!("disk=5, cpu=2,memory=7".parse::<ShapeArg>(), "2x7x5".parse::<ShapeArg>());
    for text in ["", "2", "2x2", "2x2x2x2", "ax1x1", "-1x1x1", "gpu=1", "cpu=1,cpu=2", "cpu", "cpu=", "2x2048x5GiB"] {
        assert!(text.parse::<ShapeArg>().is_err(), "{text}");
    }
    assert_eq!(exit_code("atoll create --shape huge"), 2);
}

#[test]
fn a_program_keeps_its_own_flags() {
    let cli = parse("atoll exec w --timeout 5 -e A=1 -- sh -c ls --json -x").expect("a command");
    let ClientCommand::Exec(args) = cli.command else { panic!("{:?}", cli.command) };
    assert_eq!(args.argv, ["sh", "-c", "ls", "--json", "-x"]);
    assert_eq!((args.timeout, cli.global.json), (Some(5), false));
    let cli = parse("atoll exec w ls -la --json").expect("no dashes needed");
    let ClientCommand::Exec(args) = cli.command else { panic!("{:?}", cli.command) };
    assert_eq!(args.argv, ["ls", "-la", "--json"]);
    let cli = parse("atoll exec w --json -c true").expect("the shell's form");
    let ClientCommand::Exec(args) = cli.command else { panic!("{:?}", cli.command) };
    assert_eq!((args.command.as_deref(), cli.global.json), (Some("true"), true));
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    for line in [
        "atoll",
        "atoll exec",
        "atoll exec w",
        "atoll exec w -c true -- false",
        "atoll exec w --timeout 0 -- true",
        "atoll exec w --timeout -5 -- true",
        "atoll run",
        "atoll run -c code file.py",
        "atoll run --lang cobol -c x",
        "atoll run --sandbox w --region fra -c x",
        "atoll create --label noequals",
        "atoll create --label =v",
        "atoll fork",
        "atoll fork w --count 0",
        "atoll resize w",
        "atoll network w --no-network --allow 203.0.113.0/24",
        "atoll network w --open --deny 203.0.113.0/24",
        "atoll intervals w --auto-delete -2",
        "atoll code w",
        "atoll code w --new -c x",
        "atoll code w --list --delete c",
        "atoll rm",
        "atoll rm --all w",
        "atoll snapshot",
        "atoll snapshot w --list",
        "atoll snapshot --list --name n",
        "atoll key create",
        "atoll key rm",
        "atoll restore",
        "atoll cp onlyone",
        "atoll ls -q --json",
        "atoll nosuch",
    ] {
        assert_eq!(exit_code(line), 2, "{line}");
    }
}

#[test]
fn ends_of_a_copy_are_told_apart() {
    let end = |text: &str| text.parse::<CopyEnd>().expect("an end");
    let inside = |sandbox: &str, path: &str| CopyEnd::Sandbox { sandbox: sandbox.into(), path: path.into() };
    assert_eq!(end("w:/root/a:b"), inside("w", "/root/a:b"));
    assert_eq!(end("w:relative"), inside("w", "relative"));
    assert_eq!(end("./a:b"), CopyEnd::Local("./a:b".into()));
    assert_eq!(end("/var/a:b"), CopyEnd::Local("/var/a:b".into()));
    assert_eq!(end("dir/a:b"), CopyEnd::Local("dir/a:b".into()));
    assert_eq!(end("-"), CopyEnd::Standard);
    assert!("w:".parse::<CopyEnd>().is_err());
    assert!("".parse::<CopyEnd>().is_err());
}

#[test]
fn the_help_of_each_command_shows_how_it_is_used() {
    let mut command = Cli::command();
    command.build();
    for name in [
        "create",
        "exec",
        "run",
        "code",
        "fork",
        "resize",
        "network",
        "intervals",
        "cp",
        "snapshot",
        "restore",
        "rm",
        "ls",
    ] {
        let help = command.find_subcommand_mut(name).expect(name).render_long_help().to_string();
        assert!(help.contains("Examples:"), "{name}:\n{help}");
    }
    let help = command.find_subcommand_mut("exec").expect("exec").render_long_help().to_string();
    for code in ["124", "125", "128+n"] {
        assert!(help.contains(code), "{code}:\n{help}");
    }
}
