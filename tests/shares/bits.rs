//! Random models on random layouts: the bits of all logits are those of one rank.

use proptest::prelude::*;
use tbshard::comm::Algorithm;
use tbshard::partition::Layout;

use super::shapes::{cases, check};
use crate::support::ranks::{mesh, run};

#[test]
fn any_model_on_any_layout_has_the_bits_of_one_rank() {
    let several = cases(true).prop_filter("one rank is the other side", |(_, layout)| layout.world_size > 1);
    check(160, several, |(shape, layout)| {
        let blueprint = || shape.blueprint();
        println!("{shape:?} on {layout:?}");
        let alone = Layout { world_size: 1, ..Layout::default() };
        let one = run(&blueprint, &alone, Algorithm::Auto, mesh(1));
        let many = run(&blueprint, &layout, Algorithm::Auto, mesh(layout.world_size));
        assert_eq!(many, one);
    });
}
