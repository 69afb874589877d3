//! Where diverged lanes meet again: the immediate post-dominator of every branch.

use crate::exec::code::{ALWAYS, Code, NEVER, Op};

/// Basic blocks of one function; the last is a virtual exit.
struct Graph {
    /// First instruction of each block.
    starts: Vec<u32>,
    next: Vec<Vec<usize>>,
}

/// Where control can go after an instruction; `None` is the end of the thread.
fn successors(code: &Code, at: u32) -> Vec<Option<u32>> {
    let inst = &code.insts[at as usize];
    let guarded = inst.guard != ALWAYS;
    let mut list = match inst.op {
        Op::Bra(to) => vec![Some(to)],
        Op::Brx(table) => code.tables[table as usize].iter().map(|&t| Some(t)).collect(),
        Op::Exit | Op::Trap => vec![None],
        _ => return vec![Some(at + 1)],
    };
    if guarded {
        list.push(Some(at + 1));
    }
    list
}

fn graph(code: &Code, start: u32, end: u32) -> Graph {
    let mut leads = vec![false; (end - start) as usize + 1];
    leads[0] = true;
    for at in start..end {
        let list = successors(code, at);
        if list.len() != 1 || list[0] != Some(at + 1) {
            leads[(at + 1 - start) as usize] = true;
            for to in list.into_iter().flatten().filter(|t| (start..end).contains(t)) {
                leads[(to - start) as usize] = true;
            }
        }
    }
    let starts: Vec<u32> = (start..end).filter(|at| leads[(at - start) as usize]).collect();
    let exit = starts.len();
    let block_of = |at: u32| starts.partition_point(|&s| s <= at).saturating_sub(1);
    let mut next = Vec::with_capacity(exit);
    for (i, _) in starts.iter().enumerate() {
        let last = starts.get(i + 1).copied().unwrap_or(end) - 1;
        let mut to: Vec<usize> = successors(code, last)
            .into_iter()
            .map(|t| t.filter(|t| (start..end).contains(t)).map_or(exit, block_of))
            .collect();
        to.sort_unstable();
        to.dedup();
        next.push(to);
    }
    Graph { starts, next }
}

/// Blocks from which the exit can be reached, in reverse postorder of the reversed graph.
fn order(graph: &Graph) -> Vec<usize> {
    let exit = graph.starts.len();
    let mut before = vec![Vec::new(); exit + 1];
    for (from, list) in graph.next.iter().enumerate() {
        for &to in list {
            before[to].push(from);
        }
    }
    let (mut seen, mut post) = (vec![false; exit + 1], Vec::new());
    let mut stack = vec![(exit, 0)];
    seen[exit] = true;
    while let Some((node, child)) = stack.pop() {
        match before[node].get(child) {
            None => post.push(node),
            Some(&to) => {
                stack.push((node, child + 1));
                if !seen[to] {
                    seen[to] = true;
                    stack.push((to, 0));
                }
            }
        }
    }
    post.reverse();
    post
}

/// The immediate post-dominator of each block; blocks that never end have none.
fn post_dominators(graph: &Graph) -> Vec<Option<usize>> {
    let exit = graph.starts.len();
    let order = order(graph);
    let mut rank = vec![usize::MAX; exit + 1];
    for (i, &node) in order.iter().enumerate() {
        rank[node] = i;
    }
    let mut up: Vec<Option<usize>> = vec![None; exit + 1];
    up[exit] = Some(exit);
    let meet = |up: &[Option<usize>], mut a: usize, mut b: usize| {
        while a != b {
            if rank[a] < rank[b] {
                std::mem::swap(&mut a, &mut b);
            }
            match up[a] {
                Some(above) => a = above,
                None => return b,
            }
        }
        a
    };
    let mut changed = true;
    while changed {
        changed = false;
        for &node in order.iter().filter(|&&n| n != exit) {
            let mut best = None;
            for &to in &graph.next[node] {
                if up[to].is_some() {
                    best = Some(best.map_or(to, |b| meet(&up, b, to)));
                }
            }
            if best.is_some() && up[node] != best {
                up[node] = best;
                changed = true;
            }
        }
    }
    up
}

/// Writes the reconvergence point into every branch of the instructions `start..end`.
pub(super) fn joins(code: &mut Code, start: u32, end: u32) {
    let graph = graph(code, start, end);
    let up = post_dominators(&graph);
    for (block, above) in up.iter().enumerate().take(graph.starts.len()) {
        let last = graph.starts.get(block + 1).copied().unwrap_or(end) - 1;
        let join = above.and_then(|to| graph.starts.get(to).copied()).unwrap_or(NEVER);
        if matches!(code.insts[last as usize].op, Op::Bra(_) | Op::Brx(_)) {
            code.insts[last as usize].e = join;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::code::Inst;
    use crate::ptx::ast::Place;

    fn code(ops: &[(Op, bool)]) -> Code {
        let mut code = Code::default();
        for &(op, guarded) in ops {
            let guard = if guarded { 0 } else { ALWAYS };
            code.insts.push(Inst { op, guard, d: 0, a: 0, b: 0, c: 0, e: NEVER });
            code.places.push(Place::default());
        }
        code
    }

    #[test]
    fn an_if_meets_after_its_arms_and_a_loop_after_its_end() {
        // 0: if -> 3; 1; 2: goto 4; 3; 4: loop -> 4; 5: exit
        let mut c = code(&[
            (Op::Bra(3), true),
            (Op::Nop, false),
            (Op::Bra(4), false),
            (Op::Nop, false),
            (Op::Bra(4), true),
            (Op::Exit, false),
        ]);
        joins(&mut c, 0, 6);
        assert_eq!(c.insts[0].e, 4);
        assert_eq!(c.insts[4].e, 5);
    }

    #[test]
    fn an_arm_that_exits_meets_nowhere() {
        let mut c = code(&[(Op::Bra(2), true), (Op::Exit, false), (Op::Exit, false)]);
        joins(&mut c, 0, 3);
        assert_eq!(c.insts[0].e, NEVER);
    }

    #[test]
    fn a_loop_without_end_is_no_trouble() {
        let mut c = code(&[(Op::Bra(2), true), (Op::Bra(0), false), (Op::Bra(2), false)]);
        joins(&mut c, 0, 3);
        assert_eq!(c.insts[0].e, NEVER);
    }
}
