//! `mbarrier`: barriers in shared memory that count threads and bytes and pass in phases.
//!
//! The word of a barrier is opaque to programs; here it holds how many arrivals a phase is for, how
//! many are missing, how many bytes are, and the phase's parity. A warp that waits sleeps until a
//! barrier of its block passes; when nobody else can go on it is told that the phase is not over,
//! as it may be at any time.

use super::block::MOST_IDLE;
use super::code::{ALWAYS, Inst, Phase, PhaseKind};
use super::fault::FaultKind;
use super::lanes::{lanes, put_bits};
use super::space::addresses;
use super::warp::{Machine, State, Step, Warp, trouble_at};

/// Bits of each count.
const COUNT: u64 = (1 << 20) - 1;

/// What a barrier's word holds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Word {
    expected: u64,
    missing: u64,
    bytes: i64,
    parity: u64,
}

impl Word {
    fn pack(self) -> u64 {
        let bytes = (self.bytes as u64 & ((1 << 22) - 1)) << 40;
        1 << 63 | self.parity << 62 | bytes | self.missing << 20 | self.expected
    }

    fn unpack(bits: u64) -> Option<Self> {
        (bits >> 63 == 1).then_some(Self {
            expected: bits & COUNT,
            missing: bits >> 20 & COUNT,
            bytes: ((bits << 2) as i64) >> 42,
            parity: bits >> 62 & 1,
        })
    }
}

/// What is known of a barrier beside its word.
#[derive(Debug, Clone, Default)]
pub(super) struct Clocks {
    /// What those who arrived in this phase have seen.
    gathering: [u32; 32],
    /// What those who find a phase passed may take as seen.
    passed: [u32; 32],
}

fn merge(to: &mut [u32; 32], from: &[u32; 32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = (*to).max(*from));
}

impl Machine<'_> {
    fn phase_word(&self, lane: usize, address: u64) -> Step<Word> {
        self.aligned(lane, address, 8)?;
        let at = self.shared_range(lane, address, 8)?;
        let bits = super::space::value_of(&self.shared[at..at + 8]);
        match Word::unpack(bits) {
            Some(word) => Ok(word),
            None => {
                let text = "no mbarrier was initialised here";
                trouble_at(FaultKind::IllegalInstruction, lane, address, None, text)
            }
        }
    }

    fn put_phase(&mut self, address: u64, bits: u64) {
        let at = address as usize;
        if let Some(to) = self.shared.get_mut(at..at + 8) {
            to.copy_from_slice(&bits.to_le_bytes());
        }
        if let Some(written) = self.shadow.written.get_mut(at..at + 8) {
            written.fill(true);
        }
    }

    /// Changes a barrier; it passes when neither arrivals nor bytes are missing.
    fn change(&mut self, address: u64, mut word: Word) {
        if word.missing == 0 && word.bytes == 0 {
            word.missing = word.expected;
            word.parity ^= 1;
            let clocks = self.phases.entry(address).or_default();
            let gathered = std::mem::take(&mut clocks.gathering);
            merge(&mut clocks.passed, &gathered);
            self.stirred = true;
        }
        self.put_phase(address, word.pack());
    }

    /// `bytes` have come that the barrier waits for, from one who had seen this.
    pub(super) fn complete(
        &mut self,
        lane: usize,
        address: u64,
        bytes: u64,
        seen: &[u32; 32],
    ) -> Step {
        let mut word = self.phase_word(lane, address)?;
        word.bytes -= bytes as i64;
        merge(&mut self.phases.entry(address).or_default().gathering, seen);
        self.change(address, word);
        Ok(())
    }
}

/// Arrivals of one lane; returns the word before.
fn arrive(
    m: &mut Machine<'_>,
    w: &Warp,
    lane: usize,
    address: u64,
    (count, bytes): (u64, u64),
) -> Step<u64> {
    let mut word = m.phase_word(lane, address)?;
    let before = word.pack();
    if count > word.missing {
        let text = format!("{count} arrive at an mbarrier that waits for {}", word.missing);
        return trouble_at(FaultKind::IllegalInstruction, lane, address, None, text);
    }
    word.missing -= count;
    word.bytes += bytes as i64;
    merge(&mut m.phases.entry(address).or_default().gathering, &w.seen);
    m.change(address, word);
    Ok(before)
}

/// Runs an operation on barriers.
pub(super) fn run(
    m: &mut Machine<'_>,
    w: &mut Warp,
    inst: &Inst,
    phase: &Phase,
    mask: u32,
) -> Step {
    let at = addresses(w, &phase.at);
    if phase.kind == PhaseKind::Wait {
        return wait(m, w, inst, phase, mask);
    }
    let value = |w: &Warp, lane: usize| match phase.value {
        ALWAYS => 1,
        slot => u64::from(w.r[slot as usize][lane]),
    };
    for lane in lanes(mask) {
        let (address, value) = (at[lane], value(w, lane));
        match phase.kind {
            PhaseKind::Init => {
                m.aligned(lane, address, 8)?;
                m.shared_range(lane, address, 8)?;
                let word = Word { expected: value, missing: value, bytes: 0, parity: 0 };
                m.phases.insert(address, Clocks::default());
                m.put_phase(address, word.pack());
            }
            PhaseKind::Inval => {
                m.phase_word(lane, address)?;
                m.put_phase(address, 0);
            }
            PhaseKind::Arrive => {
                let before = arrive(m, w, lane, address, (value, 0))?;
                w.w[inst.d as usize][lane] = before;
            }
            PhaseKind::ArriveExpect => {
                let before = arrive(m, w, lane, address, (1, value))?;
                w.w[inst.d as usize][lane] = before;
            }
            PhaseKind::Expect => {
                arrive(m, w, lane, address, (0, value))?;
            }
            PhaseKind::Complete => m.complete(lane, address, value, &w.seen)?,
            PhaseKind::Wait => {}
        }
    }
    // What follows is later than what those who wait have seen.
    w.seen[w.index as usize & 31] += 1;
    Ok(())
}

/// Waits until the phase of this parity, or the one of this state, is over.
fn wait(m: &mut Machine<'_>, w: &mut Warp, inst: &Inst, phase: &Phase, mask: u32) -> Step {
    let at = addresses(w, &phase.at);
    let mut over = 0;
    for lane in lanes(mask) {
        super::bulk::land(m, at[lane])?;
        let parity = match phase.value {
            ALWAYS => w.w[phase.state as usize][lane] >> 62,
            slot => u64::from(w.r[slot as usize][lane]),
        };
        over |= u32::from(m.phase_word(lane, at[lane])?.parity != parity & 1) << lane;
    }
    if over != mask && !w.hurried {
        // It runs again when something has happened; until then it has not run.
        m.tally.lanes[w.at as usize] -= u64::from(mask.count_ones());
        m.tally.warps[w.at as usize] -= 1;
        (w.pc, w.state) = (w.at, State::Sleeps);
        return Ok(());
    }
    w.hurried = false;
    for lane in lanes(over) {
        if let Some(clocks) = m.phases.get(&at[lane]) {
            merge(&mut w.seen, &clocks.passed);
        }
    }
    w.turn += u64::from(over != 0);
    put_bits(&mut w.p[inst.d as usize], mask, over);
    Ok(())
}

/// Wakes sleepers: all when a barrier has passed; when nobody can go on, each is told that its
/// phase is not over, some times. Says whether there were any.
pub(super) fn wake(m: &mut Machine<'_>, warps: &mut [Warp], stuck: bool) -> Step<bool> {
    if stuck {
        super::bulk::land_all(m)?;
    }
    if m.stirred {
        m.idle = 0;
    } else if !stuck || m.idle >= MOST_IDLE {
        return Ok(false);
    } else {
        m.idle += 1;
    }
    let mut woken = false;
    for w in warps.iter_mut().filter(|w| w.state == State::Sleeps) {
        (w.state, w.hurried) = (State::Ready, !m.stirred);
        woken = true;
    }
    m.stirred = false;
    Ok(woken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_keeps_its_counts() {
        for bytes in [0, 1, -1, (1 << 20) - 1, 1 - (1 << 20)] {
            let word = Word { expected: COUNT, missing: 5, bytes, parity: 1 };
            assert_eq!(Word::unpack(word.pack()), Some(word));
        }
        assert_eq!(Word::unpack(0), None);
    }
}
