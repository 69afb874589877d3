//! The learning rate as a function of the step.

use crate::config::{Schedule, StageConfig};

/// Learning rate of 0-based `step`: a linear warm-up from `warmup_start`, then the schedule's
/// curve.
///
/// The curves are VAR's: with p the share of the steps after the warm-up that has passed and m the
/// final share `min_lr`, cosine is m + (1 - m)(1 + cos(pi p)) / 2, and lin0 stays at the peak until
/// p = .05, then falls as m + (1 - m)(1 - p) / .95.
pub fn learning_rate(stage: &StageConfig, step: u64) -> f64 {
    stage.lr * share_of_peak(stage, step)
}

fn share_of_peak(stage: &StageConfig, step: u64) -> f64 {
    let warmup = (stage.warmup * stage.steps as f64).round() as u64;
    if step < warmup {
        let done = step as f64 / warmup as f64;
        return stage.warmup_start + (1.0 - stage.warmup_start) * done;
    }
    let last = stage.steps.saturating_sub(1).saturating_sub(warmup).max(1);
    let passed = ((step - warmup) as f64 / last as f64).min(1.0);
    let fall = match stage.schedule {
        Schedule::Const => 1.0,
        Schedule::Cosine => 0.5 + 0.5 * (std::f64::consts::PI * passed).cos(),
        Schedule::Lin0 if passed < 0.05 => 1.0,
        Schedule::Lin0 => (1.0 - passed) / 0.95,
    };
    stage.min_lr + (1.0 - stage.min_lr) * fall
}

/// A weight that grows from 0 to 1 over the first `share` of `steps`: beta's and alpha's ramp.
pub fn ramp(share: f64, steps: u64, step: u64) -> f64 {
    let length = share * steps as f64;
    if length < 1.0 { 1.0 } else { (step as f64 / length).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(schedule: Schedule, step: u64) -> f64 {
        let stage = StageConfig {
            steps: 1001,
            lr: 2.0,
            min_lr: 0.1,
            warmup: 0.0,
            schedule,
            ..StageConfig::default()
        };
        learning_rate(&stage, step)
    }

    #[test]
    fn curves_start_at_the_peak_and_end_at_their_floor() {
        for schedule in [Schedule::Const, Schedule::Cosine, Schedule::Lin0] {
            assert_eq!(at(schedule, 0), 2.0);
        }
        assert_eq!(at(Schedule::Const, 1000), 2.0);
        assert!((at(Schedule::Cosine, 500) - 1.1).abs() < 1e-12);
        for schedule in [Schedule::Cosine, Schedule::Lin0] {
            assert!((at(schedule, 1000) - 0.2).abs() < 1e-12);
            assert!((at(schedule, 5000) - 0.2).abs() < 1e-12);
        }
        assert_eq!(at(Schedule::Lin0, 49), 2.0);
        assert!((at(Schedule::Lin0, 525) - 2.0 * (0.1 + 0.9 * 0.5)).abs() < 1e-12);
    }

    #[test]
    fn warm_up_is_a_line_from_its_start_to_the_peak() {
        let stage = StageConfig {
            steps: 100,
            lr: 1.0,
            warmup: 0.1,
            warmup_start: 0.2,
            ..StageConfig::default()
        };
        assert_eq!(learning_rate(&stage, 0), 0.2);
        assert!((learning_rate(&stage, 5) - 0.6).abs() < 1e-12);
        assert_eq!(learning_rate(&stage, 10), 1.0);
    }

    #[test]
    fn ramps_saturate() {
        assert_eq!(ramp(0.0, 100, 0), 1.0);
        assert_eq!(ramp(0.1, 100, 0), 0.0);
        assert_eq!(ramp(0.1, 100, 5), 0.5);
        assert_eq!(ramp(0.1, 100, 50), 1.0);
    }
}
