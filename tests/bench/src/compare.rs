//! A whole virtual machine beside a container: in one run, taking turns, so that what disturbs one disturbs all.

use std::time::Duration;

use crate::container::{Bundle, Runner};
use crate::place::Place;
use crate::statistics::{Ratio, Row};

/// What the rounds gave.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    pub(crate) rows: Vec<Row>,
    pub(crate) ratios: Vec<Ratio>,
}

/// Rounds of: a pooled create, `runc run`, a create without a pool, `runsc run`. `warm` has a pool, `cold` has none.
pub(crate) fn rounds(warm: &Place, cold: &Place, rounds: u32) -> anyhow::Result<Compared> {
    let mut bundle = Bundle::new()?;
    let with_runsc = Runner::Runsc.version().is_some();
    let [mut pooled, mut unpooled, mut runc, mut runsc] = [const { Vec::<Duration>::new() }; 4];
    // The first run of each warms the page cache for it.
    bundle.run(Runner::Runc)?;
    if with_runsc {
        bundle.run(Runner::Runsc)?;
    }
    for _ in 0..rounds {
        warm.wait_for_pool()?;
        pooled.push(warm.create_to_first_byte()?);
        runc.push(bundle.run(Runner::Runc)?);
        warm.wait_for_pool()?;
        unpooled.push(cold.create_to_first_byte()?);
        if with_runsc {
            runsc.push(bundle.run(Runner::Runsc)?);
        }
    }
    let ratios = [
        Ratio::of("pooled create / runc run", &pooled, &runc, 1.0),
        Ratio::of("pooled create / runsc run (gVisor, ptrace)", &pooled, &runsc, 0.3),
        Ratio::of("unpooled create / runc run", &unpooled, &runc, 5.0),
    ];
    let rows = [
        Row::of("first byte of `sh -c 'echo hi'`: pooled create", pooled),
        Row::of("first byte of `sh -c 'echo hi'`: unpooled create", unpooled),
        Row::of("first byte of `sh -c 'echo hi'`: runc run", runc),
        Row::of("first byte of `sh -c 'echo hi'`: runsc run", runsc),
    ];
    Ok(Compared { rows: rows.into_iter().flatten().collect(), ratios: ratios.into_iter().flatten().collect() })
}
