//! Examples below each command's help, and what the exit codes mean.

/// Below `genevar --help`.
pub const EXIT: &str = "\
Exit codes: 0 done; 2 input that a person can mend, the message says how; 3 slower than before
(profile --compare); 130 stopped by Ctrl-C or a termination signal, what was finished is on disk;
1 anything else.

Every command has examples: genevar COMMAND --help.";

/// The examples among these that begin with a command, each with the lines that continue it.
pub fn of(all: &str, command: &str) -> String {
    let mut own = String::from("Examples:");
    let mut continues = false;
    for line in all.lines().skip(1) {
        let begins = line.trim_start().starts_with(command);
        if begins || continues {
            own.push('\n');
            own.push_str(line);
        }
        continues = (begins || continues) && line.ends_with('\\');
    }
    own
}

/// `config`.
pub const CONFIG: &str = "\
Examples:
  genevar config --tier t1 > my.toml          every key of a preset, to change some
  genevar config --explain mask               what the keys of the mask do
  genevar config --config my.toml             a file with its preset filled in, checked";

/// `data`.
pub const DATA: &str = "\
Examples:
  genevar data inspect counts.tsv.gz tiles adata.h5ad --out look.png
  genevar data cut slides --mpp 0.5 --out tiles
  genevar data inspect counts.tsv.gz --json
  genevar data pack --tiles tiles --table tiles.tsv --rna counts.tsv.gz --out mine.safetensors
  genevar data pack --tiles tiles --out tiles.safetensors         for a tokenizer: no RNA, no table
  genevar data pack --tiles tiles --table tiles.tsv --rna gdc-download --gdc tpm --join patient \\
      --gene-map genes.tsv --crop grid --mpp 0.5 --out mine.safetensors";

/// `train`.
pub const TRAIN: &str = "\
Examples:
  genevar train all --config my.toml --data mine.safetensors --out runs/mine
  genevar train all --config my.toml --data mine.safetensors --out runs/mine --resume
  genevar train ar --config my.toml --data mine.safetensors --out runs/mine --device cuda";

/// `export`.
pub const EXPORT: &str = "\
Examples:
  genevar export --run runs/mine --f16 --out mine-trained.safetensors
  genevar export --run runs/mine --best --out best.safetensors
  genevar export --run runs/mine --var --out var         state dicts for FoundationVision/VAR
  genevar export --untrained 1 --tier t3 --out t3.safetensors";

/// `checkpoint`.
pub const CHECKPOINT: &str = "\
Examples:
  genevar checkpoint show runs/mine
  genevar checkpoint show runs/mine --json
  genevar checkpoint verify mine-trained.safetensors";

/// `import`.
pub const IMPORT: &str = "\
Examples:
  genevar import var --tokenizer vae.safetensors --transformer var.safetensors --out b.safetensors
  genevar import var --tokenizer vae.safetensors --run runs/mine    a frozen tokenizer to train on";

/// `sample`.
pub const SAMPLE: &str = "\
Examples:
  genevar sample --checkpoint runs/mine --rna profiles.tsv --n 8 --seed 1 --out tiles
  genevar sample --checkpoint runs/mine --rna profiles.tsv --rows 0-3,P17 --device cuda --out tiles
  genevar sample --checkpoint runs/mine --rna profiles.tsv --n 10000 --shard 2/8 --out tiles
  genevar sample --checkpoint runs/mine --rna profiles.tsv --n 50 --npz tiles.npz --out tiles
  genevar sample --checkpoint runs/mine --rna xena.tsv.gz --units log2-tpm --min-matched 0.8 --out t
  genevar sample --checkpoint b.safetensors --class 207 --n 4 --out dogs
  genevar sample --checkpoint runs/mine --rna profiles.tsv --rows P17 --set ERBB2=+2sd --out what-if
  genevar sample --checkpoint runs/mine --rna profiles.tsv --set CD3E=0 --set CD8A=0 --out no-t
  genevar sample --checkpoint runs/mine --rna profiles.tsv --between P3 P17 --steps 7 --out strip";

/// `eval`.
pub const EVAL: &str = "\
Examples:
  genevar eval fd --real mine.safetensors#test --tiles tiles
  genevar eval fd --checkpoint runs/mine --pack mine.safetensors --json fd.json
  genevar eval fd --real real.npz --tiles tiles.npz --features inception.safetensors --whole";

/// `report`.
pub const REPORT: &str = "\
Examples:
  genevar report runs/mine --data mine.safetensors --out mine.html
  genevar report runs/a runs/b runs/c --tiles 0 --out three.html      curves over each other
  genevar report runs/mine --eval fd.json                             with distances";

/// `log`.
pub const LOG: &str = "\
Examples:
  genevar log tensorboard runs/mine --out tb && tensorboard --logdir tb
  genevar log tensorboard runs/a runs/b --out tb                      two runs beside each other";

/// `demo`.
pub const DEMO: &str = "\
Examples:
  genevar demo                                tiles from real RNA; open runs/demo/report.html";

/// `profile`.
pub const PROFILE: &str = "\
Examples:
  genevar profile sample --tier t1                         a tile on the CPU, op by op
  genevar profile sample --checkpoint runs/mine --device cuda --json a.json --trace a.trace.json
  genevar profile sample --tier t3 --device plan           the launches of an H100, without one
  genevar profile train --stage ar --device cuda
  genevar profile --compare a.json b.json                  what changed, and what is noise

The trace opens at ui.perfetto.dev. Nsight tools see the same names:
  nsys profile genevar profile sample --device cuda";

/// `kernels`.
pub const KERNELS: &str = "\
Examples:
  genevar kernels                             all kernels with registers, spills, shared memory
  genevar kernels --json                      the same for a script, with cards
  genevar kernels attention_mma --sass        the machine code of one";

/// `ops`.
pub const OPS: &str = "\
Examples:
  genevar ops                                 a table in GitHub's syntax
  genevar ops --json | jq '.[] | select(.differentiable) | .op'";

/// `doctor`.
pub const DOCTOR: &str = "\
Examples:
  genevar doctor
  genevar doctor --json | jq '.gpus[0].memory.free'

The exit code is 0 whatever is found: the CPU needs none of it.";

/// `completions`.
pub const COMPLETIONS: &str = "\
Examples:
  genevar completions bash > ~/.local/share/bash-completion/completions/genevar
  genevar completions zsh > _genevar          into a folder of $fpath
  genevar completions fish > ~/.config/fish/completions/genevar.fish";

/// `man`.
pub const MAN: &str = "\
Examples:
  genevar man --out man && man -l man/genevar-sample.1";
