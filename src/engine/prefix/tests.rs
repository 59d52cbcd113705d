//! The tree alone, with pages that nobody computes.

use super::*;

/// A sequence as the scheduler has it.
struct Run {
    id: u64,
    tokens: Vec<u32>,
    pages: Vec<u32>,
    way: Way,
    state: Option<usize>,
}

struct Bench {
    tree: Prefixes,
    pool: PagePool,
}

impl Bench {
    fn new(pages: usize, states: Option<Vec<usize>>) -> Self {
        Self { tree: Prefixes::new(states, 1), pool: PagePool::new(pages) }
    }

    fn begin(&mut self, id: u64, tokens: &[u32]) -> Option<Run> {
        let Match::Begin(beginning, _) = self.tree.find(tokens) else { return None };
        let way = self.tree.enter(id, tokens);
        beginning.pages.iter().for_each(|page| self.pool.hold(*page));
        Some(Run { id, tokens: tokens.to_vec(), pages: beginning.pages, way, state: beginning.state })
    }

    /// Computes up to `len` tokens; returns the slot that the state is kept in.
    fn compute(&mut self, run: &mut Run, len: usize) -> Option<usize> {
        let missing = len.div_ceil(PAGE) - run.pages.len();
        self.tree.make_room(missing, &mut self.pool);
        run.pages.extend(self.pool.take(missing).unwrap());
        self.tree.computed(run.id, &mut run.way, &run.tokens[..len], &run.pages, &mut self.pool);
        self.tree.keep_state(&run.way, len)
    }

    fn end(&mut self, run: Run) {
        self.tree.leave(run.id, run.way);
        run.pages.into_iter().for_each(|page| self.pool.release(page));
    }
}

fn tokens(pages: usize, salt: u32) -> Vec<u32> {
    (0..(pages * PAGE) as u32).map(|i| i % 50 + salt).collect()
}

#[test]
fn a_page_that_is_coming_is_waited_for_until_its_owner_is_gone() {
    let mut bench = Bench::new(10, None);
    let prompt = [tokens(2, 0), vec![1]].concat();
    let first = bench.begin(1, &prompt).unwrap();
    let Match::Wait(wait) = bench.tree.find(&prompt) else { panic!("nothing to wait for") };
    assert!(bench.tree.is_coming(wait));
    bench.end(first);
    assert!(!bench.tree.is_coming(wait));
    let mut second = bench.begin(2, &prompt).unwrap();
    assert!(second.pages.is_empty());
    bench.compute(&mut second, prompt.len());
    let third = bench.begin(3, &prompt).unwrap();
    assert_eq!(third.pages, second.pages[..2]);
    assert_eq!(bench.tree.idle(), 0);
    bench.end(second);
    bench.end(third);
    assert_eq!((bench.tree.idle(), bench.pool.free()), (2, 8));
}

#[test]
fn what_was_not_used_for_longest_goes_first_and_ends_before_beginnings() {
    let mut bench = Bench::new(80, None);
    let prompts: Vec<Vec<u32>> = (0..3).map(|salt| [tokens(20, 100 * salt), vec![1]].concat()).collect();
    for (id, prompt) in prompts.iter().enumerate() {
        let mut run = bench.begin(id as u64, prompt).unwrap();
        bench.compute(&mut run, prompt.len());
        bench.end(run);
    }
    let again = bench.begin(7, &prompts[0]).unwrap();
    bench.end(again);
    assert_eq!((bench.tree.idle(), bench.pool.free()), (60, 20));
    bench.tree.make_room(30, &mut bench.pool);
    // 64 at once: all of the second and third, and the end of the first
    assert_eq!(bench.pool.free(), 64);
    let Match::Begin(first, idle) = bench.tree.find(&prompts[0]) else { panic!("it is here") };
    assert_eq!((first.pages.len(), idle), (16, 16));
    let Match::Begin(second, _) = bench.tree.find(&prompts[1]) else { panic!("it is gone") };
    assert!(second.pages.is_empty());
}

#[test]
fn a_state_is_kept_where_prompts_part_by_one_for_all() {
    let mut bench = Bench::new(40, Some(vec![9, 8]));
    let common = tokens(5, 0);
    let prompt = |salt: u32| [common.clone(), tokens(3, salt), vec![1]].concat();
    let mut first = bench.begin(1, &prompt(100)).unwrap();
    assert_eq!(bench.tree.next_state(&first.way, 0), Some(8 * PAGE));
    assert_eq!(bench.compute(&mut first, 8 * PAGE), Some(8));
    bench.end(first);
    // the second computes once more what is there, and keeps the state where they part
    let mut second = bench.begin(2, &prompt(200)).unwrap();
    assert!(second.pages.is_empty() && second.state.is_none());
    assert_eq!(bench.tree.next_state(&second.way, 0), Some(5 * PAGE));
    assert!(bench.begin(3, &prompt(300)).is_none(), "the second comes by");
    assert_eq!(bench.compute(&mut second, 5 * PAGE), Some(9));
    // its copies took the place of the older ones
    assert_eq!(bench.pool.free(), 40 - 8);
    let third = bench.begin(3, &prompt(300)).unwrap();
    assert_eq!((third.pages.len(), third.state), (5, Some(9)));
    bench.end(second);
    bench.end(third);
}

#[test]
fn the_promise_of_one_who_is_gone_is_anybodys() {
    let mut bench = Bench::new(40, Some(vec![9]));
    let common = tokens(2, 0);
    let prompt = |salt: u32| [common.clone(), tokens(1, salt), vec![1]].concat();
    let mut first = bench.begin(1, &prompt(100)).unwrap();
    bench.compute(&mut first, 3 * PAGE);
    bench.end(first);
    let second = bench.begin(2, &prompt(200)).unwrap();
    assert!(bench.begin(3, &prompt(300)).is_none());
    bench.end(second);
    let mut third = bench.begin(3, &prompt(300)).unwrap();
    assert_eq!(bench.compute(&mut third, 2 * PAGE), Some(9), "the only slot, taken from the first's end");
}
