//! The guest kernel's command line (Documentation/admin-guide/kernel-parameters.txt).

use fabric_types::Accelerator;

/// For every machine: messages go to the first serial port, few of them; a panic ends the machine at once; no audit
/// hooks; the kernel lies at its usual place, since all clones of a template share it anyway; the processor's random
/// instruction counts as entropy, since a guest has little else at boot, and each identity brings the host's; no
/// further serial ports are looked for.
const ALWAYS: &str = "console=ttyS0 quiet loglevel=4 panic=-1 audit=0 nokaslr random.trust_cpu=on rcupdate.rcu_expedited=1 \
     no_timer_check 8250.nr_uarts=1";
/// Under TCG: addresses aren't randomized, since each exec would translate the same code anew (20-40 ms); mitigations
/// of processor faults are off, since there is no processor speculating on guest code; the clock is QEMU's and needs no
/// watchdog.
const UNDER_TCG: &str = "norandmaps mitigations=off tsc=reliable nowatchdog";

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
    fn addresses_are_fixed_under_tcg_only() {
        assert!(kernel_args(Accelerator::Tcg, "").contains(" norandmaps "));
        assert!(!kernel_args(Accelerator::Kvm, "").contains("norandmaps"));
        assert!(kernel_args(Accelerator::Kvm, "loglevel=7").ends_with(" loglevel=7"));
    }
}
