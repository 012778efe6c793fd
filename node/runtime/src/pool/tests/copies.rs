//! Tests of clones that are copies of a checkpoint: how it comes to be, what becomes of it, and what is done without.

use super::*;
use crate::Verb;
use crate::checkpoint::new_of;
use crate::double::leave_stale;

impl Place {
    /// A host whose machines can be copied.
    async fn copying() -> Self {
        let place = Self::new().await;
        place.double.faults.copies.store(true, Ordering::Relaxed);
        place
    }

    fn taken(&self) -> u64 {
        self.double.taken.load(Ordering::Relaxed)
    }

    /// What of checkpoints lies in the templates' folder, by the ends of its names.
    fn checkpoints(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.path().join("templates")).expect("listed");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name"));
        let ends = names.filter_map(|name| name.split_once('.').map(|(_, end)| end.to_owned()));
        let mut ends: Vec<_> = ends.filter(|end| end.contains("checkpoint")).collect();
        ends.sort();
        ends
    }

    /// Where the default template's checkpoint lies.
    fn checkpoint(&self) -> std::path::PathBuf {
        let entries = std::fs::read_dir(self.root.path().join("templates")).expect("listed");
        let mut folders = entries.map(|entry| entry.expect("an entry").path());
        let ours = |path: &std::path::PathBuf| path.extension().is_some_and(|extension| extension == "checkpoint");
        folders.find(ours).expect("there is one")
    }

    /// Machines that stand ready and are copies, and those that aren't.
    fn ready(&self) -> (usize, usize) {
        let nobodys = |machine: &Arc<crate::double::Machine>| {
            let identity = machine.identity.lock().expect("no test panics in here");
            identity.as_ref().is_some_and(|identity| identity.rehearsal)
        };
        let ready: Vec<_> = self.double.living().into_iter().filter(nobodys).collect();
        let copies = ready.iter().filter(|machine| machine.spec().checkpoint.is_some()).count();
        (copies, ready.len() - copies)
    }

    async fn all_copies(&self, runtime: &Runtime, count: u32) {
        full(runtime, count).await;
        until("all are copies", || self.ready() == (count as usize, 0)).await;
        full(runtime, count).await;
    }
}

fn from(runtime: &Runtime) -> Option<CreateFrom> {
    runtime.creates().last().map(|budget| budget.from)
}

#[tokio::test]
async fn a_pool_is_filled_with_copies_and_what_was_cloned_before_is_replaced() {
    let place = Place::copying().await;
    let runtime = place.start(place.config(PoolLimits::fixed(6)), place.double.clone()).await;
    place.all_copies(&runtime, 6).await;
    assert_eq!((place.taken(), place.checkpoints()), (1, vec!["tap.checkpoint".to_owned()]));
    // The checkpoint's own machine and the clones that were replaced are taken apart beside everything else.
    until("nothing is left of them", || (place.ports.open().len(), place.homes("pool")) == (6, 6)).await;
    let made = place.double.created.load(Ordering::Relaxed);
    // A template, the checkpoint's clone, those that were made meanwhile, and the copies.
    assert!(made <= 2 + 2 + 6, "{made} machines were made");
    runtime.run(request(1)).await.expect("run");
    assert_eq!(from(&runtime), Some(CreateFrom::Warm));
    let machine = place.double.of(spec(1).id.as_str()).expect("it lives");
    assert!(machine.spec().checkpoint.is_some());
    let identity = machine.identity.lock().expect("no test panics in here").clone().expect("identified");
    assert!(!identity.rehearsal && identity.mac.is_some(), "who it is, with its own port's card");
    runtime.destroy_all(LIMIT).await;
    assert!(place.ports.open().is_empty() && place.homes("pool") == 0 && place.double.living().is_empty());
}

#[tokio::test]
async fn every_copy_has_its_own_ports_card_before_it_is_handed_over() {
    let place = Place::copying().await;
    let runtime = place.start(place.config(PoolLimits::fixed(3)), place.double.clone()).await;
    place.all_copies(&runtime, 3).await;
    let macs: std::collections::BTreeSet<_> = place
        .double
        .living()
        .iter()
        .map(|machine| {
            let identity = machine.identity.lock().expect("no test panics in here");
            identity.as_ref().expect("it rehearsed").mac.clone().expect("a card")
        })
        .collect();
    let ports: std::collections::BTreeSet<_> =
        place.ports.open().keys().map(|number| format!("02:00:00:00:00:{number:02x}")).collect();
    assert_eq!(macs, ports);
    runtime.destroy_all(LIMIT).await;
}

#[tokio::test]
async fn a_create_that_finds_an_empty_pool_copies_the_checkpoint_and_leaves_the_spare() {
    let place = Place::copying().await;
    let limits = PoolLimits { min: 1, max: 1, memory_mib: 4096, spares: 2 };
    let runtime = place.start(place.config(limits), place.ahead()).await;
    place.all_copies(&runtime, 1).await;
    until("one spare, no more", || place.waiting.load(Ordering::Relaxed) == 1).await;
    // The second comes before the first one's clone is replaced.
    let (one, two) = tokio::join!(runtime.run(request(1)), runtime.run(request(2)));
    one.and(two).expect("run");
    let from: Vec<_> = runtime.creates().iter().map(|budget| budget.from).collect();
    assert!(from.contains(&CreateFrom::Warm) && from.contains(&CreateFrom::Copy), "{from:?}");
    assert_eq!(place.waiting.load(Ordering::Relaxed), 1, "spares are for others");
    runtime.destroy_all(LIMIT).await;
    assert_eq!((place.waiting.load(Ordering::Relaxed), place.ports.open().len()), (0, 0));
}

#[tokio::test]
async fn a_node_without_a_pool_copies_a_checkpoint_that_is_there() {
    let place = Place::copying().await;
    let runtime = place.start(place.config(PoolLimits::fixed(1)), place.double.clone()).await;
    place.all_copies(&runtime, 1).await;
    runtime.destroy_all(LIMIT).await;
    let runtime = place.start(place.config(PoolLimits::fixed(0)), place.double.clone()).await;
    runtime.run(request(1)).await.expect("run");
    assert_eq!(from(&runtime), Some(CreateFrom::Copy));
    // One whose guest doesn't answer is undone, and a clone is made.
    place.double.faults.mute.store(1, Ordering::Relaxed);
    runtime.run(request(2)).await.expect("run");
    assert_eq!(from(&runtime), Some(CreateFrom::Clone));
    assert_eq!((place.double.living().len(), place.homes("sandboxes")), (2, 2));
    // The pool, which makes nothing ahead here, takes a port while it looks for the checkpoint that was asked for.
    until("a port for each", || place.ports.open().len() == 2).await;
    runtime.run(request(3)).await.expect("run");
    assert_eq!(from(&runtime), Some(CreateFrom::Clone), "it isn't used for a while");
    assert_eq!(place.taken(), 1);
    runtime.destroy_all(LIMIT).await;
    assert!(place.ports.open().is_empty() && place.double.living().is_empty());
}

#[tokio::test]
async fn a_driver_that_copies_nothing_makes_clones_and_tries_no_checkpoint() {
    let place = Place::new().await;
    let runtime = place.start(place.config(PoolLimits::fixed(2)), place.double.clone()).await;
    full(&runtime, 2).await;
    for number in 1..=4 {
        runtime.run(request(number)).await.expect("run");
        full(&runtime, 2).await;
    }
    // A template, and every clone.
    assert_eq!(place.double.created.load(Ordering::Relaxed), 1 + 6);
    assert!(place.checkpoints().is_empty(), "{:?}", place.checkpoints());
    runtime.destroy_all(LIMIT).await;
}

#[tokio::test]
async fn a_checkpoint_that_fails_half_way_leaves_nothing_and_clones_go_on() {
    let place = Place::copying().await;
    place.double.faults.checkpoints.store(1, Ordering::Relaxed);
    let runtime = place.start(place.config(PoolLimits::fixed(3)), place.double.clone()).await;
    full(&runtime, 3).await;
    runtime.run(request(1)).await.expect("run");
    full(&runtime, 3).await;
    assert_eq!((place.ready(), place.taken()), ((0, 3), 0), "it isn't tried again at once");
    assert!(place.checkpoints().is_empty(), "{:?}", place.checkpoints());
    until("nothing is left of its machine", || place.ports.open().len() == 4).await;
    runtime.destroy_all(LIMIT).await;
}

#[tokio::test]
async fn a_refused_copy_becomes_a_clone_and_copies_rest_for_a_while() {
    let place = Place::copying().await;
    let runtime = place.start(place.config(PoolLimits::fixed(2)), place.double.clone()).await;
    place.all_copies(&runtime, 2).await;
    place.double.faults.refused_copies.store(1, Ordering::Relaxed);
    runtime.run(request(1)).await.expect("run");
    full(&runtime, 2).await;
    assert_eq!(place.ready(), (1, 1));
    runtime.run(request(2)).await.expect("run");
    full(&runtime, 2).await;
    assert_eq!(place.ready(), (0, 2), "no copy is tried so soon, and no clone replaced");
    assert_eq!((place.taken(), place.double.faults.refused_copies.load(Ordering::Relaxed)), (1, 0));
    runtime.destroy_all(LIMIT).await;
    assert!(place.ports.open().is_empty() && place.homes("pool") == 0);
}

#[tokio::test]
async fn a_checkpoint_that_goes_between_look_and_copy_costs_no_create() {
    let place = Place::copying().await;
    let runtime = place.start(place.config(PoolLimits::fixed(1)), place.double.clone()).await;
    place.all_copies(&runtime, 1).await;
    runtime.destroy_all(LIMIT).await;
    let runtime = place.start(place.config(PoolLimits::fixed(0)), place.double.clone()).await;
    place.double.faults.vanished.store(1, Ordering::Relaxed);
    // The pool would make another one beside what is looked at.
    place.double.faults.copies.store(false, Ordering::Relaxed);
    runtime.run(request(1)).await.expect("run");
    assert_eq!(from(&runtime), Some(CreateFrom::Clone));
    assert_eq!((place.checkpoints().len(), place.double.living().len(), place.homes("sandboxes")), (0, 1, 1));
    runtime.destroy_all(LIMIT).await;
    assert!(place.ports.open().is_empty());
}

#[tokio::test]
async fn what_an_earlier_boot_or_a_killed_node_left_is_replaced() {
    let place = Place::copying().await;
    let runtime = place.start(place.config(PoolLimits::fixed(1)), place.double.clone()).await;
    place.all_copies(&runtime, 1).await;
    runtime.destroy_all(LIMIT).await;
    let folder = place.checkpoint();
    leave_stale(&folder);
    std::fs::write(folder.join("old"), "").expect("written");
    std::fs::create_dir_all(new_of(&folder).expect("named")).expect("half-made");
    let runtime = place.start(place.config(PoolLimits::fixed(2)), place.double.clone()).await;
    place.all_copies(&runtime, 2).await;
    assert_eq!((place.taken(), place.checkpoints().len()), (2, 1));
    assert!(is_current(&folder) && !folder.join("old").exists());
    runtime.destroy_all(LIMIT).await;
}

#[tokio::test]
async fn two_nodes_of_a_host_make_one_checkpoint() {
    let place = Place::copying().await;
    let second = RuntimeConfig {
        dir: place.root.path().join("node2"),
        run: place.root.path().join("run2"),
        ..place.config(PoolLimits::fixed(3))
    };
    // A node has ports of its own: each would take those back that it doesn't know.
    let ports: Arc<Ports> = Arc::default();
    let network = Network::new(Some(ports.clone() as Arc<dyn Plugs>));
    let one = place.start(place.config(PoolLimits::fixed(3)), place.double.clone()).await;
    let two = Runtime::start_over(second, place.double.clone(), place.store.clone(), network, is_current).await;
    let two = two.expect("started");
    tokio::join!(full(&one, 3), full(&two, 3));
    until("all are copies", || place.ready() == (6, 0)).await;
    assert_eq!((place.taken(), place.checkpoints().len()), (1, 1));
    tokio::join!(one.destroy_all(LIMIT), two.destroy_all(LIMIT));
    assert!(place.double.living().is_empty() && place.ports.open().is_empty() && ports.open().is_empty());
    assert!(is_current(&place.checkpoint()), "it stays for the next");
}

#[tokio::test]
async fn an_adopted_copy_is_handed_over_like_any_other() {
    let place = Place::copying().await;
    let runtime = place.start(place.config(PoolLimits::fixed(2)), place.double.clone()).await;
    place.all_copies(&runtime, 2).await;
    runtime.drain(LIMIT).await;
    drop(runtime);
    // What was made of it needs it no more.
    std::fs::remove_dir_all(place.checkpoint()).expect("removed");
    let runtime = place.start(place.config(PoolLimits::fixed(2)), place.double.clone()).await;
    assert_eq!(runtime.pools().borrow()[0].warm, 2);
    runtime.run(request(1)).await.expect("run");
    assert_eq!(from(&runtime), Some(CreateFrom::Warm));
    runtime.act(&spec(1).id, ONE, Verb::Pause).await.expect("paused");
    runtime.act(&spec(1).id, ONE, Verb::Resume).await.expect("resumed");
    place.all_copies(&runtime, 2).await;
    assert_eq!(place.taken(), 2, "the next that was wanted made it anew");
    runtime.destroy_all(LIMIT).await;
}
