//! What is to be set up: every cable's two ports outside of bridges, with a network of their own that nobody else has.

use std::cmp::Reverse;
use std::net::Ipv4Addr;

use super::mac::OURS;
use super::{Cable, Cabling, End, Goal, Mac};
use crate::error::{Error, Result};

/// Where networks of cables are taken from: private, and unlikely in an office or at home.
const POOLS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 213, 47, 0), Ipv4Addr::new(172, 29, 213, 0), Ipv4Addr::new(192, 168, 213, 0)];
/// Bits of a pool.
const POOL: u8 = 24;
/// Bits of a cable's network: two addresses.
const CABLE: u8 = 30;

/// An IPv4 network.
type Network = (Ipv4Addr, u8);

/// What is to become so, in this order.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// By host.
    pub goals: Vec<(usize, Goal)>,
    /// The addresses of the ends of every cable that can be used.
    pub addresses: Vec<(Cable, [Ipv4Addr; 2])>,
}

fn overlap(a: Network, b: Network) -> bool {
    let host = 32 - u32::from(a.1.min(b.1).min(32));
    a.0.to_bits().checked_shr(host) == b.0.to_bits().checked_shr(host)
}

fn interface(macs: &[(String, Mac)], end: End) -> &str {
    macs[end.host].1.ports[end.port].interface.as_deref().unwrap_or_default()
}

/// The service and address that an interface has by hand, the user's own before ours.
fn by_hand(macs: &[(String, Mac)], end: End) -> Option<(&str, Network)> {
    let interface = interface(macs, end);
    let all = macs[end.host].1.services.iter().filter(|service| service.enabled && service.interface == interface);
    let mut all: Vec<_> = all.filter_map(|service| Some((service.name.as_str(), service.manual?))).collect();
    all.sort_by_key(|(name, _)| name.starts_with(OURS));
    all.first().copied()
}

impl Plan {
    /// The plan for all cables that can be used. No cable gets a network that overlaps one of `taken` or of another
    /// interface of any host; one that is in order stays as it is.
    ///
    /// # Errors
    /// If no range of addresses is free.
    pub fn new(macs: &[(String, Mac)], cabling: &Cabling, taken: &[Ipv4Addr]) -> Result<Self> {
        let mut foreign: Vec<Network> = macs
            .iter()
            .flat_map(|(_, mac)| mac.other_networks())
            .map(|(_, address, prefix)| (address, prefix))
            .collect();
        foreign.extend(taken.iter().map(|address| (*address, 32)));
        let free = |network: Network, others: &[Network]| others.iter().all(|other| !overlap(network, *other));
        let mut plan = Self::default();
        let (mut own, mut open) = (Vec::new(), Vec::new());
        for cable in cabling.usable() {
            let pair = cable.ends.map(|end| by_hand(macs, end));
            let fits = |a: Network, b: Network| {
                a.1 == b.1 && a.0 != b.0 && overlap(a, b) && !a.0.is_link_local() && free(a, &foreign) && free(a, &own)
            };
            match pair {
                [Some((one, a)), Some((two, b))] if fits(a, b) => {
                    own.push(a);
                    plan.add(macs, cable, [(one.to_owned(), a), (two.to_owned(), b)]);
                }
                _ => open.push(cable),
            }
        }
        let pool = POOLS.into_iter().find(|pool| free((*pool, POOL), &foreign));
        let Some(pool) = pool.or((open.is_empty()).then_some(POOLS[0])) else {
            let error = Error::msg(
                "no range of private addresses is free for the cables: the hosts' networks overlap all that tbshard knows",
            );
            return Err(
                error.hint("give the Thunderbolt ports addresses by hand, two of a network of its own for every cable")
            );
        };
        let mut networks =
            (0..1_u32 << (CABLE - POOL)).map(|at| Ipv4Addr::from_bits(pool.to_bits() + (at << (32 - CABLE))));
        for cable in open {
            let network = networks.by_ref().find(|network| free((*network, CABLE), &own));
            let Some(network) = network else {
                return Err(Error::msg("there are more cables than addresses for them").hint("use fewer cables"));
            };
            own.push((network, CABLE));
            let end = |at: usize| {
                let address = Ipv4Addr::from_bits(network.to_bits() + 1 + at as u32);
                (format!("{OURS}{}", interface(macs, cable.ends[at])), (address, CABLE))
            };
            plan.add(macs, cable, [end(0), end(1)]);
        }
        plan.addresses.sort_by_key(|(cable, _)| cable.ends);
        // the list first, and from behind, because those behind one that goes move up; all else stays in its order
        plan.goals.sort_by_key(|(host, goal)| match goal {
            Goal::Configured { interface, .. } => {
                let at = macs[*host].1.configured.iter().position(|other| other == interface);
                (*host, 0, Reverse(at))
            }
            _ => (*host, 1, Reverse(None)),
        });
        Ok(plan)
    }

    fn add(&mut self, macs: &[(String, Mac)], cable: &Cable, ends: [(String, Network); 2]) {
        self.addresses.push((cable.clone(), [ends[0].1.0, ends[1].1.0]));
        for (end, (name, (address, prefix))) in cable.ends.into_iter().zip(ends) {
            let interface = interface(macs, end).to_owned();
            self.goals.extend([
                (end.host, Goal::Configured { interface: interface.clone(), member: false }),
                (end.host, Goal::Member { interface: interface.clone(), member: false }),
                (end.host, Goal::Service { name: name.clone(), interface: interface.clone() }),
                (end.host, Goal::Address { name, interface, address, prefix }),
            ]);
        }
    }

    /// What is not so yet.
    pub fn open<'a>(&'a self, macs: &'a [(String, Mac)]) -> impl Iterator<Item = (usize, &'a Goal)> {
        self.goals.iter().filter(|(host, goal)| !goal.met(&macs[*host].1)).map(|(host, goal)| (*host, goal))
    }
}

/// What restores the Macs: our services go, and what was in the bridge is in it again.
pub fn undo(macs: &[(String, Mac)]) -> Plan {
    let mut plan = Plan::default();
    for (host, (_, mac)) in macs.iter().enumerate() {
        let ours = mac.services.iter().filter(|service| service.name.starts_with(OURS));
        plan.goals.extend(ours.map(|service| (host, Goal::NoService { name: service.name.clone() })));
        let record = mac.record.clone().unwrap_or_default();
        let configured = record.configured.into_iter().map(|interface| Goal::Configured { interface, member: true });
        let members = record.members.into_iter().map(|interface| Goal::Member { interface, member: true });
        plan.goals.extend(configured.chain(members).map(|goal| (host, goal)));
    }
    plan
}
