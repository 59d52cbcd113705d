//! What prompts have in common: a tree of pages, so that a beginning is computed once.
//!
//! A node is a page's worth of tokens after those of the nodes above it. It is *coming* while the sequence that was first to
//! have it computes it, and *here* once a page holds it. Models with a recurrent state can go on from a node only where that
//! state was kept too; it is large, so it is kept where prompts part, and at the end of prompts.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::pages::PagePool;
use super::sequence::Beginning;
use crate::backend::PAGE;

/// The fewest tokens for which a part of a page is copied.
const LEAST_PART: usize = 4;

/// Pages after the same page that are looked through for one that begins alike.
const LOOKED_THROUGH: usize = 64;

/// Pages that are given up at once, at least: all are looked through for them.
const GIVEN_UP: usize = 64;

/// A node's number.
type Node = usize;

struct Entry {
    parent: Option<Node>,
    tokens: Box<[u32]>,
    children: HashMap<Box<[u32]>, Node>,
    content: Content,
    state: State,
    // sequences on whose way it is
    users: usize,
    used: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    /// The sequence of this number computes it.
    Coming(u64),
    Here(u32),
}

/// The recurrent state at a node's end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Absent,
    /// Whoever comes by next is to keep it.
    Asked,
    /// The sequence of this number will come by.
    Promised(u64),
    Kept(usize),
}

/// What there is for a new sequence.
pub(super) enum Match {
    /// A running sequence computes more of it right now.
    Wait(Wait),
    /// This much is there; so many of its pages are held by no sequence.
    Begin(Beginning, usize),
}

/// What is worth waiting for: what a running sequence computes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    node: Node,
    owner: u64,
}

/// The tree.
pub(super) struct Prefixes {
    entries: Vec<Option<Entry>>,
    vacant: Vec<Node>,
    roots: HashMap<Box<[u32]>, Node>,
    // slots for recurrent states that are not taken
    states: Vec<usize>,
    recurrent: bool,
    // entries that are on nobody's way
    idle: usize,
    // parts of pages are copied in multiples of this
    grain: usize,
    clock: u64,
}

/// The nodes on the way of one sequence, page by page; those of the first `done` pages are here.
#[derive(Debug, Default)]
pub(super) struct Way {
    nodes: Vec<Node>,
    done: usize,
}

impl Prefixes {
    /// A tree without nodes. `states` are the slots for recurrent states, if the model has such.
    pub(super) fn new(states: Option<Vec<usize>>, grain: usize) -> Self {
        Self {
            entries: Vec::new(),
            vacant: Vec::new(),
            roots: HashMap::new(),
            recurrent: states.is_some(),
            states: states.unwrap_or_default(),
            idle: 0,
            grain,
            clock: 0,
        }
    }

    /// What of `tokens` is there. At least the last of them is not: its logits are wanted.
    pub(super) fn find(&mut self, tokens: &[u32]) -> Match {
        let way = self.walk(tokens);
        let here = way.iter().take_while(|node| self.page(**node).is_some()).count();
        if !self.recurrent {
            if let Some(node) = way.get(here)
                && let Content::Coming(owner) = self.entry(*node).content
            {
                return Match::Wait(Wait { node: *node, owner });
            }
            return self.begin(&way, None, self.part(&way, tokens));
        }
        let kept = |node: &Node| if let State::Kept(slot) = self.entry(*node).state { Some(slot) } else { None };
        let (usable, state) = (0..here).rev().find_map(|i| Some((i + 1, kept(&way[i])?))).unzip();
        let usable = usable.unwrap_or(0);
        if let Some(last) = way.last().copied().filter(|_| way.len() > usable) {
            // two have come this far: whoever computes it keeps its state
            let entry = self.entry_mut(last);
            if entry.state == State::Absent {
                entry.state = State::Asked;
            }
            match (entry.content, entry.state) {
                (Content::Coming(owner), _) | (_, State::Promised(owner)) => {
                    return Match::Wait(Wait { node: last, owner });
                }
                _ => {}
            }
        }
        self.begin(&way[..usable], state, None)
    }

    /// Whether what was worth waiting for still is.
    pub(super) fn is_coming(&self, wait: Wait) -> bool {
        let entry = self.entries[wait.node].as_ref();
        entry.is_some_and(|entry| {
            entry.content == Content::Coming(wait.owner) || entry.state == State::Promised(wait.owner)
        })
    }

    fn begin(&self, way: &[Node], state: Option<usize>, part: Option<(u32, usize)>) -> Match {
        let pages = way.iter().filter_map(|node| self.page(*node)).collect();
        let idle = way.iter().filter(|node| self.entry(**node).users == 0).count();
        Match::Begin(Beginning { pages, part, state }, idle)
    }

    /// The page after `way` that has most in common with what follows there.
    fn part(&self, way: &[Node], tokens: &[u32]) -> Option<(u32, usize)> {
        let rest = &tokens[way.len() * PAGE..tokens.len() - 1];
        let next = self.children(way.last().copied()).values().take(LOOKED_THROUGH);
        let alike = next.filter_map(|node| {
            let same = self.entry(*node).tokens.iter().zip(rest).take_while(|(a, b)| a == b).count();
            Some((self.page(*node)?, same / self.grain * self.grain))
        });
        alike.max_by_key(|(page, same)| (*same, *page)).filter(|(_, same)| *same >= LEAST_PART)
    }

    fn walk(&self, tokens: &[u32]) -> Vec<Node> {
        let mut way: Vec<Node> = Vec::new();
        for page in tokens[..tokens.len().saturating_sub(1)].chunks_exact(PAGE) {
            let Some(node) = self.children(way.last().copied()).get(page) else { break };
            way.push(*node);
        }
        way
    }

    /// The sequence `id` begins: it will compute `tokens`, as far as they are not here. Returns its way.
    pub(super) fn enter(&mut self, id: u64, tokens: &[u32]) -> Way {
        self.clock += 1;
        let mut way = Way { nodes: self.walk(tokens), done: 0 };
        for node in &way.nodes {
            self.join(*node);
        }
        let pages = tokens[..tokens.len().saturating_sub(1)].chunks_exact(PAGE);
        for page in pages.skip(way.nodes.len()) {
            let node = self.insert(way.nodes.last().copied(), page, Content::Coming(id));
            way.nodes.push(node);
        }
        if let Some(last) = way.nodes.last().copied().filter(|_| self.recurrent)
            && self.entry(last).state == State::Absent
        {
            self.entry_mut(last).state = State::Asked;
        }
        for node in &way.nodes {
            let entry = self.entry_mut(*node);
            if entry.state == State::Asked {
                entry.state = State::Promised(id);
            }
        }
        way
    }

    fn join(&mut self, node: Node) {
        let used = self.clock;
        let entry = self.entry_mut(node);
        entry.used = used;
        entry.users += 1;
        self.idle -= usize::from(entry.users == 1);
    }

    /// Where in its sequence, after position `len`, a recurrent state is to be kept next.
    pub(super) fn next_state(&self, way: &Way, len: usize) -> Option<usize> {
        let asked = |node: &Node| matches!(self.entry(*node).state, State::Asked | State::Promised(_));
        let more = way.nodes.iter().skip(len / PAGE).position(asked)?;
        Some((len / PAGE + more + 1) * PAGE)
    }

    /// The sequence `id` has computed `tokens`, which are in `pages`. Pages that are complete are here from now on.
    pub(super) fn computed(&mut self, id: u64, way: &mut Way, tokens: &[u32], pages: &[u32], pool: &mut PagePool) {
        for (tokens, page) in tokens.chunks_exact(PAGE).zip(pages).skip(way.done) {
            let above = way.done.checked_sub(1).map(|last| way.nodes[last]);
            match (way.nodes.get(way.done).copied(), self.children(above).get(tokens).copied()) {
                (Some(node), _) => self.fill(node, id, *page, pool),
                // from here on the pages are the answer's
                (None, None) => {
                    pool.hold(*page);
                    way.nodes.push(self.insert(above, tokens, Content::Here(*page)));
                }
                (None, Some(node)) if self.page(node).is_some() => {
                    self.join(node);
                    self.fill(node, id, *page, pool);
                    way.nodes.push(node);
                }
                // it may yet be given up by the one that computes it
                (None, Some(_)) => return,
            }
            way.done += 1;
        }
    }

    /// The sequence `id` has what belongs in `node`, in `page`. Where it computed once more what is there, and nobody else uses
    /// that, the older copy is given up.
    fn fill(&mut self, node: Node, id: u64, page: u32, pool: &mut PagePool) {
        let entry = self.entry_mut(node);
        let old = match entry.content {
            Content::Coming(owner) if owner == id => None,
            Content::Here(old) if old != page && entry.users == 1 => Some(old),
            _ => return,
        };
        entry.content = Content::Here(page);
        pool.hold(page);
        if let Some(old) = old {
            pool.release(old);
        }
    }

    /// A slot for the state that a sequence has after `len` positions, if it is to be kept.
    pub(super) fn keep_state(&mut self, way: &Way, len: usize) -> Option<usize> {
        let node = *way.nodes.get((len / PAGE).checked_sub(1)?).filter(|_| len.is_multiple_of(PAGE))?;
        if !matches!(self.entry(node).state, State::Asked | State::Promised(_)) {
            return None;
        }
        let slot = self.states.pop().or_else(|| self.give_up_state())?;
        self.entry_mut(node).state = State::Kept(slot);
        Some(slot)
    }

    /// Takes the slot of the state that was not used for longest.
    fn give_up_state(&mut self) -> Option<usize> {
        let kept = self.entries.iter_mut().flatten().filter_map(|entry| match entry.state {
            State::Kept(slot) => Some((slot, entry)),
            _ => None,
        });
        let (slot, entry) = kept.min_by_key(|(_, entry)| entry.used)?;
        entry.state = State::Absent;
        Some(slot)
    }

    /// The sequence `id` is over.
    pub(super) fn leave(&mut self, id: u64, way: Way) {
        for node in way.nodes.into_iter().rev() {
            let entry = self.entry_mut(node);
            entry.users -= 1;
            if entry.state == State::Promised(id) {
                entry.state = State::Asked;
            }
            if entry.content == Content::Coming(id) {
                self.remove(node);
            } else {
                let idle = self.entry(node).users == 0;
                self.idle += usize::from(idle);
            }
        }
    }

    /// Pages that are kept for sequences to come, and could be given up.
    pub(super) fn idle(&self) -> usize {
        self.idle
    }

    /// Gives up pages that nobody uses, those that were not used for longest first, until `count` are free.
    pub(super) fn make_room(&mut self, count: usize, pool: &mut PagePool) {
        if pool.free() >= count {
            return;
        }
        let is_end = |entry: &Entry| entry.users == 0 && entry.children.is_empty();
        let ends = self.entries.iter().enumerate().filter_map(|(node, entry)| {
            let entry = entry.as_ref().filter(|entry| is_end(entry))?;
            Some(Reverse((entry.used, node)))
        });
        let mut ends: BinaryHeap<Reverse<(u64, Node)>> = ends.collect();
        while pool.free() < count.max(GIVEN_UP) {
            let Some(Reverse((_, node))) = ends.pop() else { return };
            let parent = self.entry(node).parent;
            if let Some(page) = self.page(node) {
                pool.release(page);
            }
            self.idle -= 1;
            self.remove(node);
            if let Some(parent) = parent
                && is_end(self.entry(parent))
            {
                ends.push(Reverse((self.entry(parent).used, parent)));
            }
        }
    }

    fn insert(&mut self, parent: Option<Node>, tokens: &[u32], content: Content) -> Node {
        let entry = Entry {
            parent,
            tokens: tokens.into(),
            children: HashMap::new(),
            content,
            state: State::Absent,
            users: 1,
            used: self.clock,
        };
        let node = self.vacant.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        self.entries[node] = Some(entry);
        self.children_mut(parent).insert(tokens.into(), node);
        node
    }

    fn remove(&mut self, node: Node) {
        let Some(entry) = self.entries[node].take() else { return };
        self.children_mut(entry.parent).remove(&entry.tokens);
        if let State::Kept(slot) = entry.state {
            self.states.push(slot);
        }
        self.vacant.push(node);
    }

    fn page(&self, node: Node) -> Option<u32> {
        if let Content::Here(page) = self.entry(node).content { Some(page) } else { None }
    }

    fn children(&self, node: Option<Node>) -> &HashMap<Box<[u32]>, Node> {
        node.map_or(&self.roots, |node| &self.entry(node).children)
    }

    fn children_mut(&mut self, node: Option<Node>) -> &mut HashMap<Box<[u32]>, Node> {
        match node {
            Some(node) => &mut self.entry_mut(node).children,
            None => &mut self.roots,
        }
    }

    #[allow(clippy::expect_used, reason = "a node on somebody's way, or in its parent's list, is there")]
    fn entry(&self, node: Node) -> &Entry {
        self.entries[node].as_ref().expect("a node that is there")
    }

    #[allow(clippy::expect_used, reason = "as above")]
    fn entry_mut(&mut self, node: Node) -> &mut Entry {
        self.entries[node].as_mut().expect("a node that is there")
    }
}
