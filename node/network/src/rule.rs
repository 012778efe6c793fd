//! Words of the packet filter's language, over the typed form of its JSON. Pure.

use std::collections::HashSet;

use ipnet::Ipv4Net;
use nftables::expr::{
    CT, CTDir, Elem, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload, PayloadField,
    Prefix, SetItem, Verdict,
};
use nftables::schema::{
    Chain, Element, FlushObject, NfCmd, NfListObject, Rule, Set, SetFlag, SetType, SetTypeValue, Table,
};
use nftables::stmt::{CTCount, JumpTarget, Limit, Mangle, Match, Operator, Reject, RejectType, Statement, VerdictMap};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook, RejectCode};
use serde::Serialize;

/// One command of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Command {
    /// As the crate types it.
    Typed(Box<NfCmd<'static>>),
    /// What it has no type for: maps to verdicts.
    Plain(serde_json::Value),
}

/// A table, in which everything else is named.
#[derive(Debug, Clone)]
pub(crate) struct In {
    family: NfFamily,
    name: String,
}

/// Where packets meet a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hook {
    pub(crate) hook: NfHook,
    pub(crate) kind: NfChainType,
    pub(crate) priority: i32,
    pub(crate) policy: NfChainPolicy,
}

fn typed(command: NfCmd<'static>) -> Command {
    Command::Typed(Box::new(command))
}

impl In {
    pub(crate) fn new(family: NfFamily, name: impl Into<String>) -> Self {
        Self { family, name: name.into() }
    }

    fn table(&self) -> Table<'static> {
        Table { family: self.family, name: self.name.clone().into(), handle: None }
    }

    pub(crate) fn add(&self) -> Command {
        typed(NfCmd::Add(NfListObject::Table(self.table())))
    }

    pub(crate) fn delete(&self) -> Command {
        typed(NfCmd::Delete(NfListObject::Table(self.table())))
    }

    fn chain_object(&self, name: &str, hook: Option<Hook>) -> Chain<'static> {
        Chain {
            family: self.family,
            table: self.name.clone().into(),
            name: name.to_owned().into(),
            _type: hook.map(|hook| hook.kind),
            hook: hook.map(|hook| hook.hook),
            prio: hook.map(|hook| hook.priority),
            policy: hook.map(|hook| hook.policy),
            ..Chain::default()
        }
    }

    /// The chain, emptied if there was one, with these rules.
    pub(crate) fn chain(&self, name: &str, hook: Option<Hook>, rules: Vec<Vec<Statement<'static>>>) -> Vec<Command> {
        let chain = self.chain_object(name, hook);
        let mut all = vec![typed(NfCmd::Add(NfListObject::Chain(chain)))];
        all.extend(self.rules(name, rules));
        all
    }

    /// These rules instead of what a chain has.
    pub(crate) fn rules(&self, chain: &str, rules: Vec<Vec<Statement<'static>>>) -> Vec<Command> {
        let mut all = vec![typed(NfCmd::Flush(FlushObject::Chain(self.chain_object(chain, None))))];
        all.extend(rules.into_iter().map(|rule| self.rule(chain, rule, None)));
        all
    }

    /// One more rule.
    pub(crate) fn rule(&self, chain: &str, rule: Vec<Statement<'static>>, comment: Option<String>) -> Command {
        typed(NfCmd::Add(NfListObject::Rule(Rule {
            family: self.family,
            table: self.name.clone().into(),
            chain: chain.to_owned().into(),
            expr: rule.into(),
            comment: comment.map(Into::into),
            ..Rule::default()
        })))
    }

    pub(crate) fn delete_chain(&self, name: &str) -> Command {
        typed(NfCmd::Delete(NfListObject::Chain(self.chain_object(name, None))))
    }

    /// A map from a device's name to what happens to its packets.
    pub(crate) fn verdicts(&self, name: &str) -> Command {
        Command::Plain(serde_json::json!({"add": {"map": {
            "family": self.family, "table": self.name, "name": name, "type": "ifname", "map": "verdict",
        }}}))
    }

    /// A device's packets go to a chain.
    pub(crate) fn verdict(&self, map: &str, device: &str, chain: &str) -> Command {
        self.elements(
            map,
            vec![Expression::List(vec![text(device), Expression::Verdict(Verdict::Goto(target(chain)))])],
        )
    }

    pub(crate) fn delete_verdict(&self, map: &str, device: &str, chain: &str) -> Command {
        let pair = Expression::List(vec![text(device), Expression::Verdict(Verdict::Goto(target(chain)))]);
        typed(NfCmd::Delete(self.element(map, vec![pair])))
    }

    fn set_object(&self, name: &str, flag: Option<SetFlag>) -> Set<'static> {
        Set {
            family: self.family,
            table: self.name.clone().into(),
            name: name.to_owned().into(),
            set_type: SetTypeValue::Single(SetType::Ipv4Addr),
            flags: flag.map(|flag| HashSet::from([flag])),
            ..Set::default()
        }
    }

    /// A set of addresses.
    pub(crate) fn set(&self, name: &str, flag: SetFlag) -> Command {
        typed(NfCmd::Add(NfListObject::Set(Box::new(self.set_object(name, Some(flag))))))
    }

    pub(crate) fn flush_set(&self, name: &str) -> Command {
        typed(NfCmd::Flush(FlushObject::Set(Box::new(self.set_object(name, None)))))
    }

    pub(crate) fn delete_set(&self, name: &str) -> Command {
        typed(NfCmd::Delete(NfListObject::Set(Box::new(self.set_object(name, None)))))
    }

    fn element(&self, set: &str, elements: Vec<Expression<'static>>) -> NfListObject<'static> {
        NfListObject::Element(Element {
            family: self.family,
            table: self.name.clone().into(),
            name: set.to_owned().into(),
            elem: elements.into(),
        })
    }

    pub(crate) fn elements(&self, set: &str, elements: Vec<Expression<'static>>) -> Command {
        typed(NfCmd::Add(self.element(set, elements)))
    }

    pub(crate) fn delete_elements(&self, set: &str, elements: Vec<Expression<'static>>) -> Command {
        typed(NfCmd::Delete(self.element(set, elements)))
    }
}

fn target(chain: &str) -> JumpTarget<'static> {
    JumpTarget { target: chain.to_owned().into() }
}

pub(crate) fn text(text: impl Into<String>) -> Expression<'static> {
    Expression::String(text.into().into())
}

pub(crate) fn number(number: u32) -> Expression<'static> {
    Expression::Number(number)
}

pub(crate) fn named_set(name: &str) -> Expression<'static> {
    text(format!("@{name}"))
}

pub(crate) fn any_of(items: Vec<Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Set(items.into_iter().map(SetItem::Element).collect()))
}

pub(crate) fn range(net: &Ipv4Net) -> Expression<'static> {
    if net.prefix_len() == 32 {
        return text(net.addr().to_string());
    }
    let prefix = Prefix { addr: Box::new(text(net.network().to_string())), len: u32::from(net.prefix_len()) };
    Expression::Named(NamedExpression::Prefix(prefix))
}

/// An element that ends by itself.
pub(crate) fn timed(value: Expression<'static>, seconds: u32, comment: String) -> Expression<'static> {
    let elem = Elem { val: Box::new(value), timeout: Some(seconds), comment: Some(comment.into()), ..Elem::default() };
    Expression::Named(NamedExpression::Elem(elem))
}

pub(crate) fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

pub(crate) fn field(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

/// The address that a connection was opened to, for packets of both directions.
pub(crate) fn opened_to() -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT { key: "ip daddr".into(), family: None, dir: Some(CTDir::Original) }))
}

pub(crate) fn connection(key: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT { key: key.into(), family: None, dir: None }))
}

/// What the routes say of an address.
pub(crate) fn route(result: FibResult, flags: &[FibFlag]) -> Expression<'static> {
    Expression::Named(NamedExpression::Fib(Fib { result, flags: flags.iter().copied().collect() }))
}

fn compare(left: Expression<'static>, op: Operator, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

pub(crate) fn is(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    compare(left, Operator::EQ, right)
}

pub(crate) fn is_not(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    compare(left, Operator::NEQ, right)
}

/// Whether a connection is in one of these states.
pub(crate) fn state(states: &[&'static str]) -> Statement<'static> {
    let states = states.iter().map(|&state| text(state)).collect();
    compare(connection("state"), Operator::IN, Expression::List(states))
}

pub(crate) fn device_in(name: &str) -> Statement<'static> {
    is(meta(MetaKey::Iifname), text(name))
}

pub(crate) fn device_out(name: &str) -> Statement<'static> {
    is(meta(MetaKey::Oifname), text(name))
}

pub(crate) fn protocol(names: &[&'static str]) -> Statement<'static> {
    is(meta(MetaKey::L4proto), any_of(names.iter().map(|&name| text(name)).collect()))
}

pub(crate) fn accept() -> Statement<'static> {
    Statement::Accept(None)
}

pub(crate) fn drop() -> Statement<'static> {
    Statement::Drop(None)
}

pub(crate) fn goto(chain: &str) -> Statement<'static> {
    Statement::Goto(target(chain))
}

pub(crate) fn jump(chain: &str) -> Statement<'static> {
    Statement::Jump(target(chain))
}

pub(crate) fn masquerade() -> Statement<'static> {
    Statement::Masquerade(None)
}

/// A device's packets go where a map says, on to the next rule if it says nothing.
pub(crate) fn by_device(key: MetaKey, map: &str) -> Statement<'static> {
    Statement::VerdictMap(VerdictMap { key: meta(key), data: named_set(map) })
}

pub(crate) fn set_connection_mark(mark: u32) -> Statement<'static> {
    Statement::Mangle(Mangle { key: connection("mark"), value: number(mark) })
}

/// Matches what is over so many bytes a second.
pub(crate) fn over_bytes(rate: u32, burst: u32) -> Statement<'static> {
    let bytes = || Some("bytes".into());
    let per = Some("second".into());
    Statement::Limit(Limit { rate, rate_unit: bytes(), per, burst: Some(burst), burst_unit: bytes(), inv: Some(true) })
}

/// Matches what is over so many packets a second.
pub(crate) fn over_packets(rate: u32, burst: u32) -> Statement<'static> {
    let per = Some("second".into());
    Statement::Limit(Limit { rate, rate_unit: None, per, burst: Some(burst), burst_unit: None, inv: Some(true) })
}

/// Matches what is over so many open connections.
pub(crate) fn over_connections(count: u32) -> Statement<'static> {
    Statement::CTCount(CTCount { val: number(count), inv: Some(true) })
}

pub(crate) fn reset() -> Statement<'static> {
    Statement::Reject(Some(Reject::new(Some(RejectType::TCPReset), None)))
}

pub(crate) fn prohibited() -> Statement<'static> {
    Statement::Reject(Some(Reject::new(Some(RejectType::ICMP), Some(RejectCode::AdminProhibited))))
}
