//! What a Mac prints becomes facts, or an error that names the command; never a panic.

use tbshard::cluster::thunderbolt::{Mac, Raw, Rdma, Said};

fn fixture(name: &str) -> String {
    std::fs::read_to_string(crate::support::files::fixtures().join("thunderbolt").join(name)).unwrap()
}

/// The answers of the Mac that the fixtures are of.
fn answers() -> Vec<Said> {
    let list = "/Library/Preferences/SystemConfiguration/preferences.plist";
    let said = |command: &[&str], code: i32, out: String| {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        Said { command, code: Some(code), out, err: String::new() }
    };
    vec![
        said(&["sw_vers"], 0, fixture("sw_vers.txt")),
        said(&["system_profiler", "SPThunderboltDataType", "-json"], 0, fixture("profiler.json")),
        said(&["networksetup", "-listallhardwareports"], 0, fixture("ports.txt")),
        said(&["networksetup", "-listnetworkserviceorder"], 0, fixture("services.txt")),
        said(&["ifconfig", "-a"], 0, fixture("ifconfig.txt")),
        said(&["rdma_ctl", "status"], 0, "enabled\n".to_owned()),
        said(&["ibv_devices"], 0, fixture("ibv_devices.txt")),
        said(&["ibv_devinfo", "-v"], 0, fixture("ibv_devinfo.txt")),
        said(&["sysctl", "-n", "iogpu.wired_limit_mb"], 0, "0\n".to_owned()),
        said(&["sysctl", "-n", "hw.memsize"], 0, "549755813888\n".to_owned()),
        said(
            &["PlistBuddy", "-c", "Print :VirtualNetworkInterfaces:Bridge:bridge0:Interfaces", list],
            0,
            fixture("bridge.txt"),
        ),
        said(&["networksetup", "-getinfo", "Ethernet"], 0, "DHCP Configuration\nIP address: 192.168.1.11\n".to_owned()),
        said(&["networksetup", "-getinfo", "Cable, to the left"], 0, fixture("getinfo.txt")),
        said(&["networksetup", "-getinfo", "VPN"], 4, "VPN is not a recognized network service.\n".to_owned()),
    ]
}

/// The Mac, after `command` (by its first word and a later one) has said `out` and ended with `code`.
fn mac_but(words: (&str, &str), out: &str, code: Option<i32>) -> tbshard::error::Result<Mac> {
    let mut said = answers();
    let fits = |said: &&mut Said| said.command[0] == words.0 && said.command.iter().any(|word| word == words.1);
    let changed = said.iter_mut().find(fits).unwrap();
    (changed.out, changed.code) = (out.to_owned(), code);
    Mac::read(&Raw { said, record: None })
}

#[test]
fn a_mac_is_read_from_what_it_prints() {
    let mac = Mac::read(&Raw { said: answers(), record: None }).unwrap();
    assert_eq!((mac.version.product, mac.version.text.as_str()), ((26, 3), "26.3.1 (25D2128)"));
    let ports: Vec<_> = mac
        .ports
        .iter()
        .map(|port| (port.label(), port.connected, port.speed.map(|s| (s.gigabits, s.is_limit))))
        .collect();
    assert_eq!(
        ports,
        [
            ("en3 (socket 1)".to_owned(), false, Some((120, true))),
            ("en4 (socket 2)".to_owned(), true, Some((40, false))),
            // its hardware port is not listed, its service is
            ("en5 (socket 3)".to_owned(), true, Some((80, false))),
            ("thunderboltusb4_bus_3".to_owned(), false, None),
            ("a bus without a name".to_owned(), false, None),
        ]
    );
    assert_eq!(mac.bridge_of("en3"), Some("bridge0"));
    assert_eq!((mac.bridge_of("en5"), mac.configured.clone()), (None, vec!["en3".to_owned(), "en4".to_owned()]));
    let names: Vec<_> = mac.services.iter().map(|service| (service.name.as_str(), service.enabled)).collect();
    assert_eq!(
        names,
        [("Ethernet", true), ("Thunderbolt-Brücke (alt)", false), ("Cable, to the left", true), ("VPN", true)]
    );
    assert_eq!(mac.services[0].manual, None);
    assert_eq!(mac.services[2].manual, Some(("10.1.2.1".parse().unwrap(), 30)));
    let addresses = &mac.link("en5").unwrap().addresses;
    assert_eq!(addresses[..], [("10.1.2.1".parse().unwrap(), 30), ("169.254.8.8".parse().unwrap(), 16)]);
    assert_eq!(mac.link("utun4").unwrap().addresses[0].1, 32);
    assert_eq!((mac.rdma, mac.devices.len()), (Rdma::Enabled, 3));
    let (down, silent, up) = (mac.device("en3").unwrap(), mac.device("en4").unwrap(), mac.device("en5").unwrap());
    assert_eq!((down.active, down.gids.clone()), (Some(false), Some(Vec::new())));
    assert_eq!((silent.active, silent.gids.clone()), (None, None));
    assert_eq!((up.active, up.gids.clone()), (Some(true), Some(vec!["10.1.2.1".parse().unwrap()])));
    assert_eq!((mac.wired_limit, mac.memory), (Some(0), Some(512 << 30)));
}

#[test]
fn what_is_not_understood_names_the_command_and_the_line() {
    let profiler = ("system_profiler", "-json");
    let ports = ("networksetup", "-listallhardwareports");
    let services = ("networksetup", "-listnetworkserviceorder");
    for (command, out, code, text) in [
        (
            ("sw_vers", "sw_vers"),
            "ProductName: macOS\n",
            Some(0),
            "`sw_vers` says what tbshard does not understand: there is no `ProductVersion:`",
        ),
        (("sw_vers", "sw_vers"), "ProductVersion: Tahoe\n", Some(0), "`Tahoe`"),
        (profiler, "", Some(0), "SPThunderboltDataType -json` says what tbshard does not understand: no JSON"),
        (profiler, "{}", Some(0), "there is no `SPThunderboltDataType`"),
        (profiler, "{\"SPThunderboltDataType\": {}}", Some(0), "is no list"),
        (profiler, "{\"SPThunderboltDataType\": [[]]}", Some(0), "bus 0 is `[]`"),
        (profiler, "", Some(1), "ended with 1"),
        (profiler, "", None, "cannot be run"),
        (ports, "You must specify a port\n", Some(0), "it lists no `Hardware Port:`"),
        (ports, "Device: en0\n", Some(0), "`Device: en0` belongs to no"),
        (services, "\n", Some(0), "it lists no service"),
        (services, "(Hardware Port: Ethernet, Device: en0)\n", Some(0), "belongs to no service"),
        (("ifconfig", "-a"), "", Some(0), "it lists no interface"),
        (("ifconfig", "-a"), "\tinet 1.2.3.4 netmask 0xff\n", Some(0), "belongs to no interface"),
        (("ifconfig", "-a"), "en0: flags=1<UP>\n\tinet 1.2.3 netmask 0xffffff00\n", Some(0), "has no address"),
        (("ifconfig", "-a"), "ifconfig: bad\u{7}value\n", Some(0), ""),
        (
            ("rdma_ctl", "status"),
            "maybe\n",
            Some(0),
            "`rdma_ctl status` says what tbshard does not understand: `maybe`",
        ),
    ] {
        match mac_but(command, out, code) {
            Ok(_) => assert_eq!(text, "", "{command:?} {out:?}"),
            Err(error) => {
                assert!(error.to_string().contains(text) && error.hint_text().is_some(), "{error:?}");
                assert!(!error.to_string().contains(char::is_control), "{error:?}");
            }
        }
    }
}

#[test]
fn what_may_be_missing_is_no_error() {
    let rdma = |out: &str, code| mac_but(("rdma_ctl", "status"), out, code).unwrap().rdma;
    assert_eq!(rdma("", None), Rdma::Absent);
    assert_eq!((rdma("disabled\n", Some(1)), rdma("RDMA is enabled.\n", Some(0))), (Rdma::Disabled, Rdma::Enabled));
    let mac = mac_but(("ibv_devices", "ibv_devices"), "", Some(255)).unwrap();
    assert_eq!(mac.devices.len(), 2);
    let mac = mac_but(("PlistBuddy", "-c"), "", Some(1)).unwrap();
    assert!(mac.configured.is_empty());
    let mac = mac_but(("system_profiler", "-json"), "{\"SPThunderboltDataType\": []}", Some(0)).unwrap();
    assert!(mac.ports.is_empty());
    // a renamed hardware port: the one device that is left belongs to the one port that has none
    let ports = fixture("ports.txt").replace("Thunderbolt 2", "Renamed");
    let mac = mac_but(("networksetup", "-listallhardwareports"), &ports, Some(0)).unwrap();
    assert_eq!(mac.ports[1].interface, None, "two ports have no interface, so nothing is guessed");
}

#[test]
fn no_cut_of_any_output_panics() {
    for at in 0..answers().len() {
        let text = answers()[at].out.clone();
        for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)).step_by(7) {
            let mut said = answers();
            said[at].out.truncate(end);
            // an error or a Mac
            let _ = Mac::read(&Raw { said, record: None });
        }
    }
}
