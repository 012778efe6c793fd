//! The guest kernel's command line (Documentation/admin-guide/kernel-parameters.txt).

use fabric_types::Accelerator;

/// For every machine: messages go to the first serial port, few of them; a panic ends the machine at once; no audit or
/// AppArmor hooks, self-tests or watchdogs, which serve no guest (600 ms of a boot under TCG); the kernel lies at its
/// usual place, since all clones of a template share it anyway; the processor's random instruction counts as entropy,
/// since a guest has little else at boot, and each identity brings the host's; huge pages only where asked for, which
/// keeps a clone's private memory small; no further serial ports are looked for. The guest's own list of what it wants
/// is `guest_proto::boot`; a test compares the two.
const ALWAYS: &str = "console=ttyS0 quiet loglevel=4 panic=-1 audit=0 apparmor=0 lsm=landlock cryptomgr.notests nowatchdog \
     nokaslr random.trust_cpu=on rcupdate.rcu_expedited=1 no_timer_check transparent_hugepage=madvise 8250.nr_uarts=1";
/// Under TCG: addresses aren't randomized, since each exec would translate the same code anew (20-40 ms); mitigations
/// of processor faults are off, since there is no processor speculating on guest code; memory isn't zeroed twice; the
/// clock is QEMU's and needs no watchdog; no account is kept of what waits for what (PSI, a hundredth of a command's time).
const UNDER_TCG: &str = "norandmaps mitigations=off init_on_alloc=0 tsc=reliable psi=0";

/// The command line; the agent takes nothing from it.
pub(crate) fn kernel_args(accelerator: Accelerator, further: &str) -> String {
    let mut line = ALWAYS.to_owned();
    if accelerator == Accelerator::Tcg {
        line.push(' ');
        line.push_str(UNDER_TCG);
    }
    if !further.is_empty() {
        line.push(' ');
        line.push_str(further);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_boots_with_all_that_it_asks_for() {
        use guest_proto::boot::{KERNEL_ARGS, KERNEL_ARGS_CONSOLE, KERNEL_ARGS_TCG};
        let line = kernel_args(Accelerator::Tcg, "");
        let words: Vec<&str> = line.split_whitespace().collect();
        for asked in [KERNEL_ARGS, KERNEL_ARGS_CONSOLE, KERNEL_ARGS_TCG].iter().flat_map(|part| part.split_whitespace())
        {
            assert!(words.contains(&asked), "{asked} is missing in '{line}'");
        }
    }

    #[test]
    fn addresses_are_fixed_under_tcg_only() {
        assert!(kernel_args(Accelerator::Tcg, "").contains(" norandmaps "));
        assert!(!kernel_args(Accelerator::Kvm, "").contains("norandmaps"));
        assert!(kernel_args(Accelerator::Kvm, "loglevel=7").ends_with(" loglevel=7"));
    }
}
