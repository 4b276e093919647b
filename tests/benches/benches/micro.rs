//! How long the packet path's functions take, one by one. Run by `./x bench micro`.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use peregrine_benches::all;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("packets");
    for mut case in all() {
        group.throughput(Throughput::ElementsAndBytes {
            elements: case.packets as u64,
            bytes: (case.packets * case.len) as u64,
        });
        let name = case.name.clone();
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|runs| (0..runs).map(|_| case.run(timed)).sum());
        });
    }
    group.finish();
    criterion.final_summary();
}

fn timed(run: &mut dyn FnMut()) -> Duration {
    let began = Instant::now();
    run();
    began.elapsed()
}
