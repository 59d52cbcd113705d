//! A batch that is killed two hundred times; it needs no model but the demo.

use crate::batch::kills;

#[test]
fn killed_a_hundred_and_fifty_times() {
    kills::a_hundred_and_fifty();
}

#[test]
fn killed_fifty_times_and_torn() {
    kills::fifty_and_torn();
}
