//! Cables are found from both ends and through hubs; meshes and rings are seen; the drawings show them.

use serde_json::json;
use tbshard::cluster::thunderbolt::{Cabling, Shape, dot, drawing};

use super::site::{Site, bus, dock, peer_mac};

fn shape(site: &Site) -> Shape {
    Cabling::of(&site.macs()).unwrap().shape()
}

#[test]
fn meshes_and_rings_are_seen() {
    for count in 2..=4 {
        assert_eq!(shape(&Site::mesh(count)), Shape::Mesh, "{count}");
    }
    let mut four = Site::mesh(4);
    // mac1 – mac2 goes
    four.pull(0, 0);
    four.pull(1, 0);
    assert_eq!(shape(&four), Shape::Ring(vec![0, 2, 1, 3]));
    // mac1 – mac3 too
    four.pull(0, 1);
    four.pull(2, 0);
    assert_eq!(shape(&four), Shape::Neither(vec![(0, 1)]));
    let mut three = Site::new(3);
    three.cable((0, 0), (1, 0));
    assert!(matches!(shape(&three), Shape::Neither(gaps) if gaps.len() == 2));
    assert_eq!(shape(&Site::new(2)), Shape::Neither(vec![(0, 1), (0, 1)]));
}

#[test]
fn two_cables_between_two_macs_are_two_devices() {
    let mut site = Site::new(2);
    site.cable((0, 0), (1, 2));
    site.cable((0, 1), (1, 0));
    let macs = site.macs();
    let devices = Cabling::of(&macs).unwrap().devices(&macs);
    assert_eq!(devices[0][1], ["rdma_en3", "rdma_en4"]);
    // the first of the one and the first of the other are one cable
    assert_eq!(devices[1][0], ["rdma_en5", "rdma_en3"]);
}

#[test]
fn hubs_are_looked_through() {
    let mut site = Site::new(3);
    // mac1 – outer – inner – mac2, and mac3 behind the outer one too
    site.plug(0, 0, "80 Gb/s", dock("outer", &[dock("inner", &[peer_mac(1, 0)]), peer_mac(2, 0)]));
    site.plug(1, 0, "80 Gb/s", dock("inner", &[dock("outer", &[peer_mac(0, 0)])]));
    site.plug(2, 0, "80 Gb/s", dock("ou\u{1b}ter", &[peer_mac(0, 0)]));
    let macs = site.macs();
    let cabling = Cabling::of(&macs).unwrap();
    let via: Vec<_> = cabling.cables.iter().map(|cable| (cable.via.join(" "), cable.mutual, cable.usable)).collect();
    // a port has one peer: the other one is left
    assert_eq!(via, [("outer inner".to_owned(), true, true), ("outer".to_owned(), true, false)]);
    let text = drawing(&macs, &cabling);
    assert!(text.contains("mac1 en3 ===== en3 mac2  80 Gb/s, through outer, through inner"), "{text}");
    assert!(text.contains("mac1 en3 ----- en3 mac3  80 Gb/s, through outer, not for RDMA"), "{text}");
}

#[test]
fn a_port_without_a_number_or_an_interface_is_no_crash() {
    let mut site = Site::mesh(2);
    site.port(0, 0)["receptacle_1_tag"] = json!(null);
    // and its hardware port and service are gone as well
    site.cabled();
    let macs = site.macs();
    let cabling = Cabling::of(&macs).unwrap();
    // by elimination: RDMA has a device more than there are ports with interfaces
    assert_eq!(macs[0].1.ports[0].interface.as_deref(), Some("en3"));
    assert!(cabling.cables[0].usable);
    site.write(0, "rdma", "disabled\n");
    let macs = site.macs();
    let cabling = Cabling::of(&macs).unwrap();
    assert!(!cabling.cables[0].usable);
    assert!(drawing(&macs, &cabling).contains("thunderboltusb4_bus_0"), "{}", drawing(&macs, &cabling));
}

#[test]
fn the_same_mac_twice_is_refused() {
    let mut site = Site::new(2);
    *site.port(1, 0) = bus(0, 0);
    site.cabled();
    let error = Cabling::of(&site.macs()).unwrap_err();
    assert!(error.to_string().starts_with("mac1 and mac2 are the same Mac"), "{error}");
}

#[test]
fn drawings_show_cables_and_gaps() {
    let mut site = Site::mesh(4);
    site.pull(0, 2);
    site.pull(3, 0);
    let macs = site.macs();
    let cabling = Cabling::of(&macs).unwrap();
    let text = drawing(&macs, &cabling);
    println!("{text}");
    let picture = "\
mac1 ============ mac2
  |            /    |
  |          /      |
  |        /        |
  |      /          |
  |    /            |
mac3 ============ mac4
";
    assert!(text.starts_with(picture), "{text}");
    assert!(
        text.contains("mac1 en3 ===== en3 mac2  80 Gb/s\n") && text.contains("mac1     .....     mac4  no cable\n"),
        "{text}"
    );
    let text = dot(&macs, &cabling);
    assert!(
        text.contains("  \"mac1\" -- \"mac2\" [taillabel=\"en3\" headlabel=\"en3\" label=\"80 Gb/s\"]\n"),
        "{text}"
    );
    assert!(text.contains("  \"mac1\" -- \"mac4\" [style=dashed color=red label=\"no cable\"]\n"), "{text}");
    let whole = Site::mesh(4);
    let macs = whole.macs();
    let text = drawing(&macs, &Cabling::of(&macs).unwrap());
    println!("{text}");
    assert!(text.contains("  |        X        |\n"), "{text}");
}
