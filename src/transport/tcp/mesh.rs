//! Making the data connections: one between every two ranks.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::Cipher;
use super::acceptor::Acceptor;
use super::handshake::{self, left};
use super::hello::{Hello, Purpose, Verdict};
use super::link::Link;
use super::record::{self, Opener, Sealer};
use super::rendezvous::Join;
use super::secure::Secure;
use crate::error::{Context, Error, Result};

/// Time between two attempts to reach a rank 0 that does not listen yet.
const RETRY: Duration = Duration::from_millis(50);

/// Makes the data connections of `rank`: to the lower ranks of `table`, then from the higher ones.
pub(super) fn mesh(
    rank: usize,
    join: &Join,
    addresses: &[String],
    table: Option<&[Option<SocketAddr>]>,
    acceptor: Option<&mut Acceptor>,
    mut alive: impl FnMut() -> Result<()>,
) -> Result<Vec<Option<Link>>> {
    let mut links: Vec<Option<Link>> = (0..join.world_size).map(|_| None).collect();
    let Some(acceptor) = acceptor.filter(|_| join.data) else { return Ok(links) };
    let link = |peer: usize, stream: TcpStream, sealer: Sealer, opener: Opener| {
        let (sealer, opener) = match join.cipher {
            Cipher::Noise => (sealer, opener),
            Cipher::Plain => (Sealer::plain(), Opener::plain()),
        };
        let whom = || format!("the data connection to rank {peer} ({})", addresses[peer]);
        let link = Link::new(stream, addresses[peer].clone(), peer, join.run, sealer, opener);
        link.map_err(|error| Error::from_std(error).context(whom()))
    };
    for peer in 0..rank {
        let whom = format!("rank {peer} ({})", addresses[peer]);
        let address = table.and_then(|table| table[peer]);
        let address = address.ok_or_else(|| Error::msg(format!("{whom} listens nowhere")))?;
        let mut stream = connect(address, &whom, join.deadline, false)?;
        let keys = record::directions(handshake::initiate(&mut stream, &join.key, join.deadline, &whom)?);
        let (mut sealer, opener) = keys;
        send_hello(&mut stream, &mut sealer, &join.hello(Purpose::Data, rank, None), &whom)?;
        links[peer] = Some(link(peer, stream, sealer, opener)?);
    }
    while let Some(absent) = (rank + 1..join.world_size).find(|peer| links[*peer].is_none()) {
        alive()?;
        let now = Instant::now();
        if now >= join.deadline {
            let (address, hint) =
                (&addresses[absent], "can every rank reach every other at the address it listens at?");
            return Err(
                Error::msg(format!("rank {absent} ({address}) made no data connection to rank {rank}")).hint(hint)
            );
        }
        let Some(guest) = acceptor.next(join.deadline.min(now + Duration::from_millis(250)))? else { continue };
        let peer = guest.hello.rank as usize;
        let expected = join.objection(&guest.hello).is_none() && guest.hello.purpose == Purpose::Data && peer > rank;
        if expected && links[peer].is_none() {
            links[peer] = Some(link(peer, guest.stream, guest.sealer, guest.opener)?);
        } else {
            // a late double of some rank, which knows the key and so deserves an answer
            let refused = Verdict::Refused("all ranks of this run have come".to_owned()).encode();
            let _ = Secure::new(guest.stream, guest.sealer, guest.opener, "a guest")
                .and_then(|mut secure| secure.send(&refused));
        }
    }
    Ok(links)
}

/// Connects to `address`; if `retry`, until somebody listens there.
pub(super) fn connect(address: SocketAddr, whom: &str, deadline: Instant, retry: bool) -> Result<TcpStream> {
    loop {
        match TcpStream::connect_timeout(&address, left(deadline)) {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(Error::from_std)?;
                return Ok(stream);
            }
            Err(error) if !retry || Instant::now() + RETRY >= deadline => {
                let hint = "is that rank running, and does a firewall stand in between?";
                return Err(Error::from_std(error).context(format!("{whom} cannot be reached")).hint(hint));
            }
            Err(_) => std::thread::sleep(RETRY),
        }
    }
}

/// Says hello on a connection whose handshake has just ended.
pub(super) fn send_hello(stream: &mut TcpStream, sealer: &mut Sealer, hello: &Hello, whom: &str) -> Result<()> {
    let mut wire = [0; 256];
    let sealed = sealer.seal(&hello.encode(), &mut wire).map_err(Error::from_std);
    let count = sealed.with_context(|| format!("encrypting for {whom}"))?;
    stream.write_all(&wire[..count]).map_err(|error| handshake::Failure::from(error).error(whom))
}
