//! A batch that is killed two hundred times; it needs no model but the demo.

#[test]
fn killed_two_hundred_times() {
    crate::batch::kills::two_hundred();
}
