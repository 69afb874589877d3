//! The tokenizer and the gene prior: sizes, the quantiser's identities, gradients, learning and
//! exact resume.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

use std::collections::BTreeMap;

use genevar::autograd::{Params, Pass, Var};
use genevar::config::{BetaVaeConfig, Config, Lookup, MsvqConfig, MsvqLossConfig};
use genevar::data::loader::to_tensor;
use genevar::data::rna::{RnaNorm, Scaling};
use genevar::io::images::Rgb;
use genevar::models::beta_vae::{self, BetaVae};
use genevar::models::ms_ssim::{Border, ms_ssim};
use genevar::models::msvq::Msvq;
use genevar::tensor::{DType, Purpose, Stream, Tensor};
use genevar::train::Stage;
use genevar::train::beta_vae::BetaVaeStage;
use genevar::train::msvq::MsvqStage;

fn noise(shape: &[usize], seed: u64) -> Tensor {
    let n = shape.iter().product();
    Tensor::new(Stream::new(seed, 0, 0, Purpose::Test).normals(n), shape).unwrap()
}

/// Two levels, three scales, 16 px: small enough for finite differences.
fn tiny() -> MsvqConfig {
    MsvqConfig {
        image: 16,
        ch: 8,
        ch_mult: vec![1, 2],
        res_blocks_enc: 1,
        res_blocks_dec: 1,
        d: 4,
        vocab: 16,
        patch_nums: vec![1, 3, 8],
        phi: 2,
        scale_dropout_start: 1,
        kmeans_vectors: 300,
        warmup_steps: 4,
        restart_every: 5,
        loss: MsvqLossConfig { ms_ssim_scales: 1, gan: 0.0, ..MsvqLossConfig::default() },
        ..MsvqConfig::default()
    }
}

fn tokenizer(c: &MsvqConfig) -> (Msvq, Params) {
    let mut params = Params::new(5);
    let model = Msvq::new(c, &mut params);
    // A book on the scale of the latents, as k-means leaves it.
    let book = noise(&[c.vocab, c.d], 1);
    model.book().set(book).unwrap();
    (model, params)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape(), b.shape());
    (0..a.len()).map(|i| (a.at(i) - b.at(i)).abs()).fold(0.0, f64::max)
}

fn count(params: &Params, prefix: &str) -> usize {
    params.iter().filter(|p| p.name().starts_with(prefix)).map(|p| p.value().len()).sum()
}

#[test]
fn parameter_counts_of_the_reference_shapes() {
    let millions = |n: usize| (n as f64 / 1e5).round() / 10.0;
    for (ch, enc, dec, total) in [(32, 1.8, 2.6, 4.6), (64, 7.1, 10.4, 17.7)] {
        let mut params = Params::new(0);
        Msvq::new(&MsvqConfig { ch, ..MsvqConfig::default() }, &mut params);
        assert_eq!(millions(count(&params, "encoder.")), enc, "encoder at {ch}");
        assert_eq!(millions(count(&params, "decoder.")), dec, "decoder at {ch}");
        assert_eq!(millions(params.elements()), total, "all at {ch}");
        assert_eq!(count(&params, "quantiser.phi."), 36_992);
        assert_eq!(count(&params, "quantiser.book"), 4096 * 32);
    }
}

#[test]
fn parameter_count_of_the_gene_prior() {
    let small =
        BetaVaeConfig { genes: 30, hidden: vec![17, 11], latent: 5, ..BetaVaeConfig::default() };
    let (mut params, mut running) = (Params::new(0), Params::new(0));
    BetaVae::new(&small, &mut params, &mut running);
    assert_eq!(params.elements(), beta_vae::parameter_count(&small));
    let paper = beta_vae::parameter_count(&BetaVaeConfig::default());
    assert_eq!((paper as f64 / 1e5).round(), 2616.0);
}

#[test]
fn encode_tokens_f_k_equals_encodes_own_f_k() {
    for lookup in [Lookup::L2, Lookup::Cosine] {
        let (model, _params) = tokenizer(&MsvqConfig { lookup, ..tiny() });
        let f = noise(&[3, 8, 8, 4], 2);
        let q = model.quantiser();
        let (maps, sums) = q.walk(&f).unwrap();
        let tokens = q.tokens(&f).unwrap();
        assert_eq!(tokens.shape().dims(), [3, 1 + 9 + 64]);
        let second = &tokens.i32s().unwrap()[74 + 1..74 + 10];
        assert_eq!(second, &maps[1].i32s().unwrap()[9..18], "scale 2 of sample 2");
        let at_once = q.tokens_at_once(&f).unwrap();
        assert_eq!(at_once.i32s().unwrap(), tokens.i32s().unwrap(), "as one op");
        let pyramid = q.pyramid(&tokens).unwrap();
        for (k, (own, again)) in sums.iter().zip(&pyramid).enumerate() {
            assert_eq!(own.f32s().unwrap(), again.f32s().unwrap(), "f_{}", k + 1);
        }
    }
}

#[test]
fn rest_plus_f_hat_is_f_at_every_scale() {
    let (model, _params) = tokenizer(&tiny());
    let f = noise(&[2, 8, 8, 4], 3);
    let q = model.quantiser();
    let (_, sums) = q.walk(&f).unwrap();
    let keep = [q.scales(); 2];
    let trained = q.quantise(&Pass::eval(), &f.clone().into(), &keep).unwrap();
    assert!(largest_difference(trained.latent.value(), &sums[2]) < 1e-5);
    let vectors = q.vectors(&trained.codes).unwrap().reshape([2, 1 + 9 + 64, 4]).unwrap();
    // What scale k + 1 quantised is the pooled rest, and rest = f - f_k.
    for k in 1..q.scales() {
        let rest: Vec<f32> =
            f.f32s().unwrap().iter().zip(sums[k - 1].f32s().unwrap()).map(|(f, s)| f - s).collect();
        let rest = Tensor::new(rest, f.shape()).unwrap();
        let pooled = q.pool(k, &rest).unwrap();
        let own: Vec<f32> = (0..2)
            .flat_map(|b| {
                vectors.rows(b, 1).unwrap().into_f32s().unwrap().split_off(4 * q.offset(k))
            })
            .collect();
        let of = |b: usize| {
            let n = pooled.len() / 2;
            let first = b * own.len() / 2;
            own[first..first + n].to_vec()
        };
        let wanted = Tensor::new([of(0), of(1)].concat(), pooled.shape()).unwrap();
        assert!(largest_difference(&pooled, &wanted) < 1e-5, "scale {}", k + 1);
    }
}

#[test]
fn tokens_outside_the_book_and_latents_that_are_not_numbers_are_refused() {
    let (model, _params) = tokenizer(&tiny());
    let bad = Tensor::new_i32(vec![16; 74], [1, 74]).unwrap();
    let error = model.paint(&bad).unwrap_err().to_string();
    assert!(error.contains("token 16 at scale 1"), "{error}");
    assert!(model.paint(&Tensor::new_i32(vec![0; 70], [1, 70]).unwrap()).is_err());
    let mut f = noise(&[1, 8, 8, 4], 3).into_f32s().unwrap();
    f[17] = f32::NAN;
    let error = model.quantiser().tokens(&Tensor::new(f, [1, 8, 8, 4]).unwrap()).unwrap_err();
    assert!(error.to_string().contains("scale 1"), "{error}");
}

#[test]
fn vq_loss_gradient_equals_finite_differences_on_book_and_phi() {
    let (model, params) = tokenizer(&tiny());
    params.cast(DType::F64).unwrap();
    let f = noise(&[3, 8, 8, 4], 4).cast(DType::F64);
    // The second sample stops after the first scale.
    let keep = [3usize, 1, 3];
    let loss = || {
        let q = model.quantiser().quantise(&Pass::eval(), &f.clone().into(), &keep).unwrap();
        // With tokens held the loss is smooth; a step this small does not move one.
        q.loss.value().item().unwrap()
    };
    let pass = Pass::tape().training(&params);
    let q = model.quantiser().quantise(&pass, &f.clone().into(), &keep).unwrap();
    let grads = pass.backward(&q.loss).unwrap();
    let checked = params.iter().filter(|p| p.name().starts_with("quantiser."));
    let mut seen = 0;
    for p in checked {
        let g = grads.param(p).unwrap_or_else(|| panic!("{} has no gradient", p.name()));
        for j in 0..7 {
            let i = (j * 37 + 5) % g.len();
            let before = p.value();
            let at = |h: f64| {
                let mut values = before.to_f64s();
                values[i] += h;
                p.set(Tensor::new_f64(values, before.shape()).unwrap()).unwrap();
                loss()
            };
            let (up, down) = (at(1e-5), at(-1e-5));
            p.set(before.clone()).unwrap();
            // The loss has each term twice, with weights beta and 1; the book hears the second.
            let want = (up - down) / 2e-5 / (1.0 + tiny().beta);
            assert!(
                (g.at(i) - want).abs() < 1e-7 + 1e-6 * want.abs(),
                "{} [{i}]: {} for {want}",
                p.name(),
                g.at(i)
            );
            seen += usize::from(want != 0.0);
        }
    }
    assert!(seen > 15, "only {seen} derivatives were not zero");
}

/// The walk through the scales as one op, which a GPU takes in training, and its gradients.
#[test]
fn quantising_at_once_is_quantising_scale_by_scale() {
    for (lookup, phi) in [(Lookup::L2, 2), (Lookup::Cosine, 0)] {
        let (model, params) = tokenizer(&MsvqConfig { lookup, phi, ..tiny() });
        params.cast(DType::F64).unwrap();
        let f = noise(&[3, 8, 8, 4], 4).cast(DType::F64);
        let g = noise(&[3, 8, 8, 4], 6).cast(DType::F64);
        let q = model.quantiser();
        let run = |at_once: bool| {
            let pass = Pass::tape().training(&params);
            let f = pass.leaf(f.clone());
            // The second sample stops after the first scale.
            let keep = [3usize, 1, 3];
            let of = match at_once {
                true => q.quantise_at_once(&pass, &f, &keep).unwrap(),
                false => q.quantise(&pass, &f, &keep).unwrap(),
            };
            let vectors = q.vectors(&of.codes).unwrap();
            let read = pass.op(genevar::ops::elementwise::Mul, &[&of.latent, &g.clone().into()]);
            let sum = genevar::models::discriminator::mean(&pass, &read.unwrap()).unwrap();
            let total = pass.op(genevar::ops::elementwise::ADD, &[&sum, &of.loss]).unwrap();
            let grads = pass.backward(&total).unwrap();
            let own = params.iter().filter(|p| p.name().starts_with("quantiser."));
            let mut all: Vec<Tensor> = own.map(|p| grads.param(p).unwrap().clone()).collect();
            all.extend(
                [grads.of(&f).unwrap(), of.latent.value(), of.loss.value()].map(Tensor::clone),
            );
            all.push(vectors);
            (of.codes.tokens.i32s().unwrap().to_vec(), all)
        };
        let ((tokens, all), (tokens_at_once, all_at_once)) = (run(false), run(true));
        assert_eq!(tokens, tokens_at_once);
        assert_eq!(all.len(), all_at_once.len());
        for (i, (a, b)) in all.iter().zip(&all_at_once).enumerate() {
            assert_eq!(a.shape(), b.shape(), "{i}");
            assert!(largest_difference(a, b) < 1e-12, "{i}: {lookup:?}");
        }
    }
}

#[test]
fn the_decoders_gradient_passes_straight_through_to_f() {
    let (model, _params) = tokenizer(&tiny());
    let pass = Pass::tape();
    let f = pass.leaf(noise(&[2, 8, 8, 4], 5));
    let q = model.quantiser().quantise(&pass, &f, &[3usize, 3]).unwrap();
    let g = noise(&[2, 8, 8, 4], 6);
    let grads = pass.backward_from(&q.latent, g.clone()).unwrap();
    assert_eq!(grads.of(&f).unwrap().f32s().unwrap(), g.f32s().unwrap());
}

#[test]
fn every_parameter_of_the_tokenizer_learns_something() {
    let (model, params) = tokenizer(&tiny());
    let pass = Pass::tape().training(&params);
    let image = noise(&[2, 16, 16, 3], 7);
    let f = model.encode(&pass, &image.into()).unwrap();
    let q = model.quantiser().quantise(&pass, &f, &[3usize, 3]).unwrap();
    let y = model.decode(&pass, &q.latent).unwrap();
    let sum = genevar::models::discriminator::mean(&pass, &y).unwrap();
    let total = pass.op(genevar::ops::elementwise::ADD, &[&sum, &q.loss]).unwrap();
    let grads = pass.backward(&total).unwrap();
    for p in params.iter() {
        let g = grads.param(p).unwrap_or_else(|| panic!("{} has no gradient", p.name()));
        assert!(g.to_f64s().iter().any(|v| *v != 0.0), "{} has a zero gradient", p.name());
    }
}

#[test]
fn ms_ssim_is_one_for_equal_images_and_falls_with_noise_and_blur() {
    let image = |seed| {
        let x = noise(&[2, 64, 64, 3], seed).into_f32s().unwrap();
        // Smooth structure and a little noise.
        let wave =
            |i: usize| (((i / 3) % 64) as f32 * 0.3).sin() * (((i / 192) % 64) as f32 * 0.2).cos();
        let data = x.iter().enumerate().map(|(i, n)| 0.5 * wave(i) + 0.1 * n).collect();
        Tensor::new(data, [2, 64, 64, 3]).unwrap()
    };
    let (x, y) = (image(1), image(2));
    for border in [Border::Valid, Border::Same] {
        let score = |x: &Tensor, y: &Tensor| {
            let (p, x, y) = (Pass::eval(), x.clone().into(), y.clone().into());
            ms_ssim(&p, &x, &y, 3, border).unwrap().value().item().unwrap()
        };
        assert!((score(&x, &x) - 1.0).abs() < 1e-5);
        let near = score(&x, &y);
        let far = score(&x, &noise(&[2, 64, 64, 3], 3));
        assert!(near < 0.999 && far < near - 0.2, "{near} {far}");
        assert!((score(&x, &y) - score(&y, &x)).abs() < 1e-6);
    }
    let p = Pass::eval();
    let small: Var = noise(&[1, 32, 32, 3], 4).into();
    let refused = ms_ssim(&p, &small, &small, 3, Border::Valid).unwrap_err();
    assert!(refused.to_string().contains("below the 11-tap"));
}

/// With whole windows only, a fault in the corner pixel hardly shows.
#[test]
fn windows_cut_at_the_border_see_the_border() {
    let (p, x) = (Pass::eval(), noise(&[1, 64, 64, 3], 5));
    let mut data = x.f32s().unwrap().to_vec();
    for row in 0..64 {
        data[row * 192..row * 192 + 3].fill(0.0);
    }
    let y: Var = Tensor::new(data, [1, 64, 64, 3]).unwrap().into();
    let x = x.into();
    let loss = |border| 1.0 - ms_ssim(&p, &x, &y, 3, border).unwrap().value().item().unwrap();
    let [valid, same] = [Border::Valid, Border::Same].map(loss);
    assert!(same > 10.0 * valid, "{same} {valid}");
}

/// Coloured stripes whose direction and phase differ.
fn pictures(n: usize, side: usize) -> Vec<Rgb> {
    let one = |i: usize| {
        let at = |j: usize| {
            let (x, y, c) = ((j / 3) % side, j / 3 / side, j % 3);
            let phase =
                (x * (1 + i % 3) + y * (2 + i % 2)) as f64 * 0.1 + c as f64 + 2.0 * i as f64;
            (128.0 + 80.0 * phase.sin()) as u8
        };
        Rgb::new(side, side, (0..3 * side * side).map(at).collect()).unwrap()
    };
    (0..n).map(one).collect()
}

fn small_run(steps: u64) -> Config {
    let mut config = Config::tier("t0").unwrap();
    config.msvq = tiny();
    let stage = &mut config.train.msvq;
    (stage.steps, stage.batch, stage.lr, stage.ema) = (steps, 4, 3e-3, 0.9);
    stage.checkpoint_every = 10;
    config
}

#[test]
fn the_tokenizer_learns_a_handful_of_pictures_and_its_codes_stay_alive() {
    let mut config = small_run(240);
    config.msvq.scale_dropout = 0.0;
    let images = pictures(4, 16);
    let mut stage = MsvqStage::with_images(&config, images.clone(), &images).unwrap();
    let mut first = None;
    let mut last = None;
    for step in 0..240 {
        let log = stage.step(step).unwrap().read().unwrap();
        assert_eq!(log.not_finite(), None, "step {step}");
        let map: BTreeMap<String, f64> = log.more.iter().cloned().collect();
        if let Some(value) = map.get("val_psnr") {
            first.get_or_insert(*value);
        }
        last = Some(map);
    }
    let (first, last) = (first.unwrap(), last.unwrap());
    assert!(last["val_psnr"] > first + 8.0, "from {first} to {} dB", last["val_psnr"]);
    assert!(last["live"] >= 8.0, "{last:?}");
    assert!(last["perplexity_3"] > 3.0, "{last:?}");
}

#[test]
fn a_resumed_tokenizer_has_the_bits_of_an_uninterrupted_one() {
    for gan in [0.0, 0.4] {
        let mut config = small_run(16);
        config.msvq.loss.gan = gan;
        (config.msvq.loss.gan_layers, config.msvq.loss.gan_ch) = (1, 8);
        let images = pictures(6, 20);
        let fresh = || MsvqStage::with_images(&config, images.clone(), &images[..2]).unwrap();
        let mut whole = fresh();
        let logs: Vec<_> = (0..12).map(|s| whole.step(s).unwrap().read().unwrap()).collect();
        for stop in [3, 4, 9] {
            let mut part = fresh();
            (0..stop).for_each(|s| drop(part.step(s).unwrap()));
            let mut rest = fresh();
            rest.restore(part.state().unwrap()).unwrap();
            for s in stop..12 {
                assert_eq!(
                    rest.step(s).unwrap().read().unwrap(),
                    logs[s as usize],
                    "step {s} after {stop}"
                );
            }
            let (a, b) = (whole.state().unwrap(), rest.state().unwrap());
            assert!(a.keys().eq(b.keys()));
            assert!(a.iter().all(|(name, t)| t.to_f64s() == b[name].to_f64s()), "{stop}");
        }
        let named = logs[11].more.iter().any(|(name, _)| name == "gan_weight");
        assert_eq!(named, gan > 0.0);
    }
}

#[test]
fn training_the_decoder_alone_keeps_every_token() {
    let mut config = small_run(60);
    let images = pictures(6, 16);
    let stage = |c: &Config| MsvqStage::with_images(c, images.clone(), &images[..2]).unwrap();
    let mut whole = stage(&config);
    (0..40).for_each(|s| drop(whole.step(s).unwrap().read().unwrap()));
    let before = whole.state().unwrap();
    config.msvq.decoder_only = true;
    let mut tuned = stage(&config);
    tuned.begin_from(&before).unwrap();
    let x = to_tensor(&images).unwrap();
    assert_eq!(
        tuned.model().tokenize(&x).unwrap().i32s().unwrap(),
        whole.model().tokenize(&x).unwrap().i32s().unwrap(),
    );
    let losses: Vec<f64> = (0..60).map(|s| tuned.step(s).unwrap().read().unwrap().loss).collect();
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&losses[..10]), mean(&losses[50..]));
    assert!(last < 0.97 * first, "from {first} to {last}");
    let after = tuned.state().unwrap();
    for (name, t) in after.iter().filter(|(name, _)| name.starts_with("param.")) {
        let learns = name.contains(".decoder.") || name.contains(".post_quant_conv.");
        assert_eq!(t.to_f64s() != before[name].to_f64s(), learns, "{name}");
    }
}

/// Profiles that two hidden factors explain.
fn profiles(n: usize, genes: usize) -> Tensor {
    let (factor, load) = (noise(&[n, 2], 8), noise(&[genes, 2], 9));
    let rest = noise(&[n, genes], 10);
    let at = |i: usize| {
        let (r, g) = (i / genes, i % genes);
        let signal = (0..2).map(|j| factor.at(2 * r + j) * load.at(2 * g + j)).sum::<f64>();
        (0.7 * signal + 0.2 * rest.at(i)) as f32
    };
    Tensor::new((0..n * genes).map(at).collect(), [n, genes]).unwrap()
}

fn prior_stage(steps: u64) -> (BetaVaeStage, Tensor) {
    let mut config = Config::tier("t0").unwrap();
    config.beta_vae = BetaVaeConfig {
        genes: 24,
        hidden: vec![32, 16],
        latent: 4,
        dropout: 0.2,
        beta: 1e-3,
        ..BetaVaeConfig::default()
    };
    let stage = &mut config.train.beta_vae;
    (stage.steps, stage.batch, stage.lr, stage.checkpoint_every) = (steps, 32, 3e-3, 25);
    let genes = (0..24).map(|i| format!("G{i}")).collect();
    let (mean, sd) = (vec![0.0; 24], vec![1.0; 24]);
    let norm = RnaNorm { genes, scaling: Scaling::LOG, units: None, mean, sd };
    let all = profiles(192, 24);
    let (train, held) = (all.rows(0, 160).unwrap(), all.rows(160, 32).unwrap());
    (BetaVaeStage::with_inputs(&config, norm, train, Some(held.clone())).unwrap(), held)
}

#[test]
fn the_gene_prior_explains_held_out_profiles_by_few_dimensions() {
    let (mut stage, held) = prior_stage(300);
    let mut last = None;
    for step in 0..300 {
        last = Some(stage.step(step).unwrap().read().unwrap());
    }
    let last: BTreeMap<String, f64> = last.unwrap().more.into_iter().collect();
    let variance = held.to_f64s().iter().map(|v| v * v).sum::<f64>() / held.len() as f64;
    assert!(last["val_mse"] < 0.35 * variance, "{} of {variance}", last["val_mse"]);
    assert!((2.0..=4.0).contains(&last["active"]), "{last:?}");
    let z = stage.prior().condition(&held).unwrap();
    assert_eq!(z.shape().dims(), [32, 4]);
    let spread = z.to_f64s().iter().map(|v| v * v).sum::<f64>() / z.len() as f64;
    assert!((0.4..2.5).contains(&spread), "standardised z has variance {spread}");
}

#[test]
fn a_resumed_gene_prior_has_the_bits_of_an_uninterrupted_one() {
    let (mut whole, _) = prior_stage(60);
    let logs: Vec<_> = (0..60).map(|s| whole.step(s).unwrap().read().unwrap()).collect();
    for stop in [7, 25, 26] {
        let (mut part, _) = prior_stage(60);
        (0..stop).for_each(|s| drop(part.step(s).unwrap()));
        let (mut rest, _) = prior_stage(60);
        rest.restore(part.state().unwrap()).unwrap();
        for s in stop..60 {
            assert_eq!(
                rest.step(s).unwrap().read().unwrap(),
                logs[s as usize],
                "step {s} after {stop}"
            );
        }
        let (a, b) = (whole.state().unwrap(), rest.state().unwrap());
        assert!(a.iter().all(|(name, t)| t.to_f64s() == b[name].to_f64s()));
    }
}
