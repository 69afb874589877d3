//! What a configuration may not be.

use super::{Config, MaskKind, RnaEncoding, StageConfig};
use crate::error::{Error, Result};

/// Refuses with key, finding and advice unless `ok`.
fn want(ok: bool, key: &str, what: String, fix: &str) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::config(key, what, fix)) }
}

fn positive(key: &str, n: usize) -> Result<()> {
    want(n > 0, key, "is 0".into(), "give at least 1")
}

/// A share in [0, 1).
fn share(key: &str, x: f64) -> Result<()> {
    want((0.0..1.0).contains(&x), key, format!("{x} is not in [0, 1)"), "give a share below 1")
}

/// A share in [0, 1].
fn closed(key: &str, x: f64) -> Result<()> {
    want((0.0..=1.0).contains(&x), key, format!("{x} is not in [0, 1]"), "give a share")
}

fn not_negative(key: &str, x: f64) -> Result<()> {
    want(x >= 0.0 && x.is_finite(), key, format!("{x} is below 0"), "give 0 or more")
}

fn above_zero(key: &str, x: f64) -> Result<()> {
    want(x > 0.0 && x.is_finite(), key, format!("{x} is not above 0"), "give more than 0")
}

impl Config {
    /// Refuses values that cannot work, naming the key and what to do.
    pub fn validate(&self) -> Result<()> {
        let seed = format!("{} is 2^63 or more", self.seed);
        want(i64::try_from(self.seed).is_ok(), "seed", seed, "give a smaller seed")?;
        self.check_data()?;
        self.check_beta_vae()?;
        self.check_msvq()?;
        self.check_msvq_loss()?;
        self.check_meanflow()?;
        self.check_mask()?;
        self.check_ar()?;
        let names = ["beta_vae", "msvq", "meanflow", "ar"];
        for (name, stage) in names.iter().zip(self.train.stages()) {
            stage.check(&format!("train.{name}"))?;
            let whole = stage.accumulate == 1 || *name != "beta_vae";
            let fix = "leave it at 1: its batch norm looks at the whole batch";
            let what = format!("{name} takes its batches whole");
            want(whole, &format!("train.{name}.accumulate"), what, fix)?;
            let what = format!("{name} has no blocks to compute again");
            let can = !stage.recompute || *name != "beta_vae";
            want(can, &format!("train.{name}.recompute"), what, "leave it out")?;
        }
        Ok(())
    }

    fn check_data(&self) -> Result<()> {
        let (d, s) = (&self.data, &self.sample);
        not_negative("data.counts_per", d.counts_per)?;
        above_zero("data.sigma_floor", d.sigma_floor)?;
        above_zero("data.z_clip", d.z_clip)?;
        closed("data.min_gene_match", d.min_gene_match)?;
        share("data.unpaired", d.unpaired)?;
        positive("data.ahead", d.ahead)?;
        let what = format!("{} threads", d.workers);
        want(d.workers <= 1024, "data.workers", what, "a few for each core are enough")?;
        not_negative("sample.cfg", s.cfg)?;
        let p = format!("{} is not in (0, 1]", s.top_p);
        want(s.top_p > 0.0 && s.top_p <= 1.0, "sample.top_p", p, "1 keeps everything")
    }

    fn check_beta_vae(&self) -> Result<()> {
        let b = &self.beta_vae;
        positive("beta_vae.genes", b.genes)?;
        positive("beta_vae.latent", b.latent)?;
        let ok = !b.hidden.is_empty() && !b.hidden.contains(&0);
        want(ok, "beta_vae.hidden", format!("{:?} has no width", b.hidden), "list widths above 0")?;
        share("beta_vae.dropout", b.dropout)?;
        not_negative("beta_vae.beta", b.beta)?;
        closed("beta_vae.kl_warmup", b.kl_warmup)?;
        above_zero("beta_vae.logvar_clamp", b.logvar_clamp)?;
        closed("beta_vae.leak", b.leak)
    }

    fn check_msvq(&self) -> Result<()> {
        let m = &self.msvq;
        positive("msvq.ch", m.ch)?;
        positive("msvq.d", m.d)?;
        positive("msvq.res_blocks_enc", m.res_blocks_enc)?;
        positive("msvq.res_blocks_dec", m.res_blocks_dec)?;
        positive("msvq.phi", m.phi)?;
        let mult = !m.ch_mult.is_empty() && m.ch_mult.len() < 12 && !m.ch_mult.contains(&0);
        want(mult, "msvq.ch_mult", format!("{:?}", m.ch_mult), "list 1 to 11 multiples above 0")?;
        let halvings = m.ch_mult.len() - 1;
        let whole = m.image > 0 && m.image.is_multiple_of(1 << halvings);
        let what = format!("{} cannot be halved {halvings} times", m.image);
        want(whole, "msvq.image", what, "change it or the number of levels in msvq.ch_mult")?;
        let grows = m.patch_nums.windows(2).all(|w| w[0] < w[1]) && m.patch_nums.first() > Some(&0);
        let what = format!("{:?} does not grow", m.patch_nums);
        want(grows, "msvq.patch_nums", what, "list sides from small to large")?;
        let (last, side) = (m.patch_nums.last().copied().unwrap_or(0), m.latent_side());
        let what = format!("ends at {last}, but the latent map is {side} x {side}");
        want(last == side, "msvq.patch_nums", what, "end with the latent side")?;
        let what = format!("{} is not in 2..=65536", m.vocab);
        want((2..=65_536).contains(&m.vocab), "msvq.vocab", what, "tokens are stored in 16 bits")?;
        let ok = m.norm_groups == 0
            || m.ch_mult.iter().all(|x| (m.ch * x).is_multiple_of(m.norm_groups));
        let what = format!("{} does not divide every level's channels", m.norm_groups);
        want(ok, "msvq.norm_groups", what, "0 chooses by itself")?;
        closed("msvq.quant_resi", m.quant_resi)?;
        not_negative("msvq.beta", m.beta)?;
        closed("msvq.scale_dropout", m.scale_dropout)?;
        let start = (1..=m.scales()).contains(&m.scale_dropout_start);
        let what = format!("{} of {} scales", m.scale_dropout_start, m.scales());
        want(start, "msvq.scale_dropout_start", what, "keep between 1 and all scales")?;
        share("msvq.restart_below", m.restart_below)?;
        let what = format!("{} is fewer than the {} codes", m.kmeans_vectors, m.vocab);
        let enough = m.kmeans_vectors == 0 || m.kmeans_vectors >= m.vocab;
        want(enough, "msvq.kmeans_vectors", what, "give more, or 0 to keep the book")
    }

    fn check_msvq_loss(&self) -> Result<()> {
        let l = &self.msvq.loss;
        let terms = [
            ("l2", l.l2),
            ("l1", l.l1),
            ("ms_ssim", l.ms_ssim),
            ("vq", l.vq),
            ("gan", l.gan),
            ("feature_matching", l.feature_matching),
        ];
        for (name, weight) in terms {
            not_negative(&format!("msvq.loss.{name}"), weight)?;
        }
        closed("msvq.loss.gan_start", l.gan_start)?;
        positive("msvq.loss.gan_layers", l.gan_layers)?;
        positive("msvq.loss.gan_ch", l.gan_ch)?;
        let room =
            (1..=5).contains(&l.ms_ssim_scales) && self.msvq.image >> (l.ms_ssim_scales - 1) >= 11;
        let what = format!("{} scales leave less than the 11-tap window", l.ms_ssim_scales);
        want(room || l.ms_ssim == 0.0, "msvq.loss.ms_ssim_scales", what, "give 1 to 5, or fewer")
    }

    fn check_meanflow(&self) -> Result<()> {
        let f = &self.meanflow;
        positive("meanflow.blocks", f.blocks)?;
        positive("meanflow.head_width", f.head_width)?;
        let whole = f.width > 0 && f.width.is_multiple_of(f.head_width);
        let what = format!("{} is not a multiple of head_width {}", f.width, f.head_width);
        want(whole, "meanflow.width", what, "change one of them")?;
        let four = f.width.is_multiple_of(4);
        let what = format!("{} is not a multiple of 4", f.width);
        want(four, "meanflow.width", what, "the 2-D sine positions need it")?;
        let even = f.time_dims > 0 && f.time_dims.is_multiple_of(2);
        let what = format!("{} is not even", f.time_dims);
        want(even, "meanflow.time_dims", what, "cosines and sines come in pairs")?;
        above_zero("meanflow.time_std", f.time_std)?;
        closed("meanflow.unequal", f.unequal)?;
        closed("meanflow.forced_ends", f.forced_ends)?;
        not_negative("meanflow.adaptive_p", f.adaptive_p)?;
        above_zero("meanflow.adaptive_c", f.adaptive_c)?;
        let what = format!("{} is not in [0, .5): at 1 the loss has no minimum", f.alpha);
        want((0.0..0.5).contains(&f.alpha), "meanflow.alpha", what, "the default is .05")?;
        closed("meanflow.alpha_ramp", f.alpha_ramp)?;
        not_negative("meanflow.lambda_min", f.lambda_min)?;
        let what = format!("{} is below lambda_min {}", f.lambda_max, f.lambda_min);
        want(f.lambda_max >= f.lambda_min, "meanflow.lambda_max", what, "swap them")?;
        above_zero("meanflow.clamp_kappa", f.clamp_kappa)?;
        closed("meanflow.z_dropout", f.z_dropout)?;
        positive("meanflow.euler_steps", f.euler_steps)
    }

    fn check_mask(&self) -> Result<()> {
        let (m, scales) = (&self.mask, self.msvq.scales());
        positive("mask.draws", m.draws)?;
        closed("mask.random_keep", m.random_keep)?;
        // Scale 1 has no r_k; one past the end masks nothing.
        let what = format!("{} of {scales} scales", m.k_m);
        let ok = m.kind == MaskKind::None || (2..=scales + 1).contains(&m.k_m);
        want(ok, "mask.k_m", what, "scales count from 1, and the first has nothing to mask")
    }

    fn check_ar(&self) -> Result<()> {
        let a = &self.ar;
        positive("ar.depth", a.depth)?;
        positive("ar.heads", a.heads)?;
        let whole = a.width > 0 && a.width.is_multiple_of(a.heads);
        let what = format!("{} is not a multiple of heads {}", a.width, a.heads);
        want(whole, "ar.width", what, "change one of them")?;
        share("ar.drop_path", a.drop_path)?;
        share("ar.dropout", a.dropout)?;
        share("ar.cond_drop", a.cond_drop)?;
        closed("ar.token_noise", a.token_noise)?;
        let gains =
            [("head_gain", a.head_gain), ("adaln_gain", a.adaln_gain), ("gate_gain", a.gate_gain)];
        for (name, gain) in gains {
            not_negative(&format!("ar.{name}"), gain)?;
        }
        let guided = a.cond_drop > 0.0 || self.sample.cfg == 0.0;
        let what = format!("is 0, but sample.cfg = {} needs a null condition", self.sample.cfg);
        want(guided, "ar.cond_drop", what, "give .1, or sample.cfg = 0")?;
        let ok = a.rna != RnaEncoding::ClassLabel || a.classes > 0;
        want(ok, "ar.classes", "is 0".into(), "a class label needs classes")
    }
}

impl StageConfig {
    fn check(&self, place: &str) -> Result<()> {
        let key = |name: &str| format!("{place}.{name}");
        closed(&key("warmup"), self.warmup)?;
        positive(&key("batch"), self.batch)?;
        positive(&key("accumulate"), self.accumulate)?;
        let parts = format!("{} parts of {} examples", self.accumulate, self.batch);
        want(self.accumulate <= self.batch, &key("accumulate"), parts, "give no more than batch")?;
        positive(&key("keep"), self.keep)?;
        positive(&key("log_every"), usize::from(self.log_every > 0))?;
        positive(&key("checkpoint_every"), usize::from(self.checkpoint_every > 0))?;
        above_zero(&key("lr"), self.lr)?;
        closed(&key("min_lr"), self.min_lr)?;
        closed(&key("warmup_start"), self.warmup_start)?;
        share(&key("beta1"), self.beta1)?;
        share(&key("beta2"), self.beta2)?;
        not_negative(&key("weight_decay"), self.weight_decay)?;
        not_negative(&key("clip"), self.clip)?;
        share(&key("ema"), self.ema)?;
        let leaps = self.spike == 0.0 || self.spike > 1.0 && self.spike.is_finite();
        let what = format!("{} is neither 0 nor above 1", self.spike);
        want(leaps, &key("spike"), what, "10 is a leap, 0 looks for none")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_values_name_their_key() {
        type Spoil = fn(&mut Config);
        let cases: [(&str, Spoil); 12] = [
            ("meanflow.alpha", |c| c.meanflow.alpha = 0.5),
            ("msvq.patch_nums", |c| c.msvq.patch_nums = vec![1, 3, 2, 16]),
            ("msvq.patch_nums", |c| c.msvq.patch_nums = vec![1, 2, 8]),
            ("msvq.patch_nums", |c| c.msvq.patch_nums.clear()),
            ("msvq.image", |c| c.msvq.image = 250),
            ("meanflow.width", |c| c.meanflow.width = 500),
            ("ar.width", |c| c.ar.width = 1000),
            ("mask.k_m", |c| c.mask.k_m = 1),
            ("train.ar.warmup", |c| c.train.ar.warmup = 2.0),
            ("msvq.loss.ms_ssim_scales", |c| c.msvq.loss.ms_ssim_scales = 0),
            ("sample.top_p", |c| c.sample.top_p = 0.0),
            ("ar.cond_drop", |c| c.ar.cond_drop = 0.0),
        ];
        for (key, spoil) in cases {
            let mut c = Config::default();
            spoil(&mut c);
            let e = c.validate().unwrap_err();
            assert!(e.to_string().starts_with(key), "{key}: {e}");
            assert_eq!(e.exit_code(), 2);
        }
    }

    #[test]
    fn sizes_follow_from_the_keys() {
        let paper = Config::default().msvq;
        assert_eq!((paper.latent_side(), paper.tokens(), paper.scales()), (16, 680, 10));
        let phi: Vec<_> = (0..10).map(|k| paper.phi_of(k)).collect();
        assert_eq!(phi, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]);
        let demo = Config::tier("demo").unwrap().msvq;
        assert_eq!((demo.latent_side(), demo.tokens()), (8, 130));
        let phi: Vec<_> = (0..6).map(|k| demo.phi_of(k)).collect();
        assert_eq!(phi, [0, 0, 1, 2, 3, 3]);
        assert_eq!([16, 32, 128, 160, 640].map(|c| paper.groups(c)), [2, 4, 32, 32, 32]);
        assert_eq!(Config::default().sample.kept(4096), 900);
    }
}
