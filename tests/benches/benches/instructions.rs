//! The packet path's functions, each run once where valgrind's callgrind counts instructions. Run by
//! `tests/bench/instructions`, which tells callgrind to count within [`counted`] and to write down a part after each
//! return from it.
//!
//! One line for each part, in their order, says what it is: packets, octets of each, name, with tabulators between.

#![expect(clippy::print_stdout, reason = "it is spoken to over its standard output")]

mod memory;

use peregrine_benches::all;

fn main() {
    for mut case in all() {
        // What is set up at the first use is not what a packet costs.
        case.run(|run| run());
        case.run(counted);
        println!("{}\t{}\t{}", case.packets, case.len, case.name);
    }
}

/// Within this, callgrind counts.
#[inline(never)]
fn counted(run: &mut dyn FnMut()) {
    run();
}
