//! Every collective on every fabric: all ranks get the same bits, which are those of the tree summed in one place.

use tbshard::comm::{Algorithm, Communicator, Hello, self_test};
use tbshard::partition::{Fold, Group, Leaves, halves};

use crate::transport::fabric::{FABRICS, Fabric, on_all};

const RANKS: [usize; 6] = [1, 2, 3, 4, 5, 8];
const SIZES: [usize; 7] = [0, 1, 1023, 1024, 1025, 33_000, 1];

/// Numbers whose sum depends on the order of additions.
fn value(seed: usize, i: usize) -> f32 {
    let bits = (seed * 7919 + i * 104_729 + 1).wrapping_mul(2_654_435_761) as u32;
    (f64::from(bits) / f64::from(u32::MAX) - 0.5) as f32 * 10f32.powi((bits % 7) as i32 - 3)
}

fn vector(seed: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| value(seed, i)).collect()
}

/// The sum of `leaves` vectors in the tree's order.
fn tree(node: &std::ops::Range<usize>, len: usize) -> Vec<f32> {
    if node.len() == 1 {
        return vector(node.start, len);
    }
    let (left, right) = halves(node);
    tree(&left, len).iter().zip(tree(&right, len)).map(|(a, b)| a + b).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn run(fabric: Fabric, world: usize, body: impl Fn(&Communicator) + Send + Sync + 'static) {
    on_all(fabric.mesh(world), move |end| body(&Communicator::new(end, None)));
}

#[test]
fn sums_are_those_of_the_tree_on_every_fabric() {
    for fabric in FABRICS {
        for world in RANKS {
            run(fabric, world, move |comm| {
                for algorithm in [Algorithm::Direct, Algorithm::Scatter, Algorithm::Auto] {
                    let comm = comm.clone().with_algorithm(algorithm);
                    for len in SIZES {
                        let sum = tree(&(0..world), len);
                        let mut own = vector(comm.rank(), len);
                        comm.all_reduce(&mut own).unwrap();
                        assert_eq!(bits(&own), bits(&sum), "all_reduce of {len} on {world} ranks, {algorithm:?}");
                        let slice = comm.rank() * len / world..(comm.rank() + 1) * len / world;
                        let own = comm.reduce_scatter(&vector(comm.rank(), len)).unwrap();
                        assert_eq!(bits(&own), bits(&sum[slice]), "reduce_scatter of {len} on {world} ranks");
                    }
                }
            });
        }
    }
}

#[test]
fn uneven_shares_of_a_tree_sum_to_the_same_bits() {
    for (leaves, weights) in
        [(32, vec![1, 1, 1]), (24, vec![4, 2, 2]), (7, vec![1; 5]), (3, vec![1; 8]), (32, vec![1; 7])]
    {
        let world = weights.len();
        run(Fabric::Loopback, world, move |comm| {
            let fold: Fold = Group::new(comm.rank(), &weights).fold(Leaves::of_units(leaves, 1));
            for algorithm in [Algorithm::Direct, Algorithm::Scatter] {
                for len in [5, 1000] {
                    let partial: Vec<f32> = fold.roots.iter().flat_map(|root| tree(root, len)).collect();
                    let comm = comm.clone().with_algorithm(algorithm);
                    let sum = comm.reduce_tree(&fold, &partial, len).unwrap();
                    assert_eq!(bits(&sum), bits(&tree(&(0..leaves), len)), "{leaves} leaves, {weights:?}");
                }
            }
        });
    }
}

#[test]
fn what_is_sent_is_what_arrives() {
    for fabric in FABRICS {
        for world in RANKS {
            run(fabric, world, move |comm| {
                let rank = comm.rank();
                for len in SIZES {
                    // rank r has r more than len
                    let counts: Vec<usize> = (0..world).map(|rank| len + rank).collect();
                    let all: Vec<f32> = (0..world).flat_map(|rank| vector(rank, len + rank)).collect();
                    assert_eq!(comm.all_gather(&vector(rank, len + rank), &counts).unwrap(), all);
                    for root in [0, world - 1] {
                        let mut values = vector(rank, len);
                        comm.broadcast(&mut values, root).unwrap();
                        assert_eq!(values, vector(root, len));
                    }
                    if world > 1 {
                        comm.send((rank + 1) % world, &vector(rank, len)).unwrap();
                        let before = (rank + world - 1) % world;
                        assert_eq!(comm.recv(before, len).unwrap(), vector(before, len));
                    }
                }
                comm.barrier().unwrap();
                self_test(comm).unwrap();
            });
        }
    }
}

#[test]
fn groups_split_from_a_world_do_not_disturb_each_other() {
    run(Fabric::Shm, 6, |comm| {
        let (row, column) = (comm.rank() / 3, comm.rank() % 3);
        let rows = comm.split(&[row * 3, row * 3 + 1, row * 3 + 2]).unwrap();
        let columns = comm.split(&[column, column + 3]).unwrap();
        assert_eq!((rows.rank(), rows.world_size(), columns.rank(), columns.world_size()), (column, 3, row, 2));
        let mut value = [comm.rank() as f32];
        rows.all_reduce(&mut value).unwrap();
        assert_eq!(value, [(row * 9 + 3) as f32]);
        columns.all_reduce(&mut value).unwrap();
        assert_eq!(value, [15.0]);
        assert!(comm.split(&[comm.rank(), 6]).is_err());
        assert!(comm.split(&[(comm.rank() + 1) % 6]).is_err());
    });
}

#[test]
fn another_number_of_values_is_an_error_that_names_the_rank() {
    let errors = on_all(Fabric::Loopback.mesh(2), |end| {
        let comm = Communicator::new(end, None);
        let mut values = vec![0.0; 10 + comm.rank()];
        comm.all_reduce(&mut values).map_err(|error| error.to_string()).err()
    });
    let text = errors.into_iter().flatten().next().unwrap();
    assert!(text.contains("rank") && (text.contains("40") || text.contains("44")), "{text}");
}

#[test]
fn ranks_that_differ_are_refused_by_what_differs() {
    for (what, text) in [("model", "rank 2 has another model: `m2`, rank 0 `m`"), ("plan", "rank 2 has another plan")] {
        let errors = on_all(Fabric::Loopback.mesh(4), move |end| {
            let comm = Communicator::new(end, None);
            let odd = |name: &str, value: &str| {
                if comm.rank() == 2 && name == what { format!("{value}2") } else { value.to_owned() }
            };
            Hello::new([("model", odd("model", "m")), ("plan", odd("plan", "p"))]).exchange(&comm).unwrap_err()
        });
        assert!(errors.iter().all(|error| error.to_string().contains(text)), "{errors:?}");
    }
    on_all(Fabric::Loopback.mesh(3), |end| {
        Hello::new([("model", "m".to_owned())]).exchange(&Communicator::new(end, None)).unwrap();
    });
}
