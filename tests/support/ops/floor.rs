//! What kernels move and compute against their cards, by softcuda's exact counts.
//!
//! A card that claims too little fails, and so does one that claims too much: [`judge`] has the
//! rules.

use genevar::device::cuda::Launch;
use genevar::device::kernel::{Arg, Floor};
use genevar::ops::DynOp;
use genevar::ops::elementwise::Affine;

use super::faces::{Face, Verdict};
use super::inputs::Inputs;
use super::soft::Counts;
use super::{data, gpu, soft};

/// Bytes of a sector.
const SECTOR: u64 = 32;
/// Operations of a thread that its elements share.
const SHARED: u64 = 1;

/// All launches of an op's kernels do what their cards say; on a card of silicon there are no
/// counts to look at.
pub fn floor(op: &dyn DynOp, data: &Inputs) -> Verdict {
    for face in Face::of(op, data).into_iter().filter(|f| matches!(f, Face::Cuda(..))) {
        let Some(launches) = counted(face, op, data)? else { return Ok(()) };
        for (launch, counts) in launches {
            let card = Card::of(&launch);
            judge(&launch, &card, &counts)
                .map_err(|e| format!("{}: {e}, in {launch}", face.name()))?;
        }
    }
    Ok(())
}

/// The launches of a face with their counts.
fn counted(
    face: Face,
    op: &dyn DynOp,
    data: &Inputs,
) -> Result<Option<Vec<(Launch, Counts)>>, String> {
    let queue = gpu::queue()?;
    let ((outs, launches), counts) = soft::launched(0, || queue.trace(|| face.run(op, data)));
    outs?;
    match counts {
        None => Ok(None),
        Some(counts) if counts.len() == launches.len() => {
            Ok(Some(launches.into_iter().zip(counts).collect()))
        }
        Some(counts) => Err(format!("{} launches, {} counted", launches.len(), counts.len())),
    }
}

/// What a card says of a launch.
#[derive(Clone, Copy)]
pub struct Card {
    floor: Floor,
    slack: f64,
    conflict_free: bool,
    in_runs: bool,
}

impl Card {
    fn of(launch: &Launch) -> Self {
        let Launch { entry, args, .. } = launch;
        // What a card says may be broken anywhere.
        let text = entry.card.split_whitespace().collect::<Vec<_>>().join(" ");
        let says = |words| text.contains(words);
        Self {
            floor: (entry.floor)(args),
            slack: (entry.slack)(args),
            conflict_free: says("no bank conflicts"),
            in_runs: says("in runs"),
        }
    }
}

/// Of each launch, with `floor` and `slack` as its card has them:
/// - the bytes of the distinct 32-byte sectors that it touches are `floor` bytes, plus what its
///   buffers leave unused of their first and last sectors. Where integers choose what is read,
///   sectors may be met twice or never, and only the next point bounds `floor` from above. Where a
///   card says `in runs`, each may begin and end inside a sector: the next point bounds them;
/// - the bytes of all sectors that its warps ask for, access by access, are at most `slack` times
///   `floor`, plus one sector an access, which may begin and end inside sectors;
/// - operations are at least `floor`'s and at most `slack` times that, plus one a thread for what
///   does not depend on the element;
/// - a card that says `no bank conflicts` has none.
fn judge(launch: &Launch, card: &Card, counts: &Counts) -> Verdict {
    let mut outputs = launch.args.iter().filter_map(|a| match a {
        Arg::Output(span) => Some(span.len()),
        _ => None,
    });
    // A launch that writes where a table says has none of its own.
    if outputs.next().is_some_and(|first| first + outputs.sum::<usize>() == 0) {
        // Nothing is to be done, whatever inputs there are.
        return Ok(());
    }
    let Card { floor, slack, .. } = *card;
    let touched = SECTOR * (counts.unique_read_sectors + counts.unique_write_sectors);
    let asked = SECTOR * (counts.global_read_sectors + counts.global_write_sectors);
    let flops = counts.scalar_flops + counts.tensor_flops;
    let buffers = launch.args.iter().filter(|a| a.span().is_some()).count() as u64;
    let chosen = |a: &Arg| matches!(a, Arg::Input(span) if span.element() == "i32");
    let least = if launch.args.iter().any(chosen) { asked } else { touched };
    let most = if card.in_runs { 0 } else { touched };
    let accesses = SECTOR * (counts.global_reads + counts.global_writes);
    let threads: u64 =
        launch.grid.blocks.iter().chain(&launch.grid.threads).map(|&n| u64::from(n)).product();
    let within = |floor: u64, room: u64| (slack * floor as f64) as u64 + room;
    let ends = 2 * SECTOR * buffers;
    let fault = |what: &str, got: u64, want: u64| Err(format!("{what}: {got}, the card {want}"));
    match () {
        () if least < floor.bytes => fault("fewer bytes are touched", least, floor.bytes),
        () if most > floor.bytes + ends => fault("more bytes are touched", most, floor.bytes),
        () if asked > within(floor.bytes, accesses + ends) => {
            fault(&format!("more than {slack} times the bytes are asked for"), asked, floor.bytes)
        }
        () if flops < floor.flops => fault("fewer operations are done", flops, floor.flops),
        () if flops > within(floor.flops, SHARED * threads) => {
            fault(&format!("more than {slack} times the operations"), flops, floor.flops)
        }
        () if card.conflict_free && counts.shared_bank_conflicts > 0 => {
            fault("there are bank conflicts", counts.shared_bank_conflicts, 0)
        }
        () => Ok(()),
    }
}

/// A change of a card or of counts, and a word of the message that must come of it.
pub type Plant = (&'static str, fn(&mut Card, &mut Counts), &'static str);

/// What [`judge`] must notice.
pub const PLANTED: &[Plant] = &[
    ("CardClaimsMoreBytes", |card, _| card.floor.bytes += 8, "fewer bytes"),
    ("CardClaimsFewerBytes", |card, _| card.floor.bytes -= 1000, "more bytes are touched"),
    ("CardClaimsMoreWork", |card, _| card.floor.flops += 1, "fewer operations"),
    ("CardClaimsLessWork", |card, _| card.floor.flops /= 2, "times the operations"),
    ("KernelReadsTwice", |_, counts| counts.global_read_sectors *= 2, "asked for"),
    ("BanksClash", banks_clash, "bank conflicts"),
    ("KernelStrides", |_, counts| counts.global_write_sectors *= 8, "asked for"),
];

fn banks_clash(card: &mut Card, counts: &mut Counts) {
    (card.conflict_free, counts.shared_bank_conflicts) = (true, 1);
}

/// A launch whose card is right, with one thing changed.
pub fn notices(&(_, plant, word): &Plant) -> Verdict {
    let op = Affine { scale: 2.0, shift: 1.0 };
    let cases = [genevar::ops::Input::normal([8192])];
    let inputs = Inputs::f32(data::fill(&op, &cases, 1));
    let faces = Face::of(&op, &inputs);
    let Some(face) = faces.into_iter().find(|f| matches!(f, Face::Cuda(..))) else {
        return Ok(());
    };
    let Some(launches) = counted(face, &op, &inputs)? else { return Ok(()) };
    let [(launch, counts)] = launches.as_slice() else {
        return Err("Affine is one launch".into());
    };
    let (mut card, mut counts) = (Card::of(launch), counts.clone());
    judge(launch, &card, &counts).map_err(|e| format!("a sound launch: {e}"))?;
    plant(&mut card, &mut counts);
    match judge(launch, &card, &counts) {
        Err(message) if message.contains(word) => Ok(()),
        Err(message) => Err(format!("noticed, but without the words `{word}`: {message}")),
        Ok(()) => Err("went unnoticed".into()),
    }
}
