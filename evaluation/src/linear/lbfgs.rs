//! The limited-memory quasi-Newton method of Liu and Nocedal, "On the limited memory BFGS method for large scale
//! optimization", 1989, for smooth convex functions.

use std::collections::VecDeque;

use crate::error::Result;

/// Steps whose curvature is remembered.
const MEMORY: usize = 10;
/// Share of the decrease that the slope promises which a step must bring (Armijo's rule).
const SUFFICIENT: f64 = 1e-4;
/// Decrease, relative to the value or to 1, below which a step brings nothing: values come from products in 32 bits.
const NOTHING: f64 = 1e-9;
/// Shortenings of a step before the search along a direction is given up.
const SHORTENINGS: usize = 30;

/// Where a minimisation ended.
#[derive(Clone, Debug)]
pub(super) struct Minimum {
    pub at: Vec<f64>,
    /// Steps taken.
    pub iterations: usize,
    /// Largest absolute component of the gradient there.
    pub gradient: f64,
}

/// Minimises `function` (value and gradient at a point) from `start`, until no component of the gradient is above
/// `tolerance`, a step brings nothing that the precision of the values can show, or `most` steps are taken. `precondition`
/// multiplies by a positive definite matrix that is as near to the inverse Hessian as can be had: the nearer, the fewer steps.
pub(super) fn minimise(
    start: Vec<f64>,
    tolerance: f64,
    most: usize,
    precondition: impl Fn(&[f64]) -> Vec<f64>,
    mut function: impl FnMut(&[f64]) -> Result<(f64, Vec<f64>)>,
) -> Result<Minimum> {
    let mut at = start;
    let (mut value, mut gradient) = function(&at)?;
    let mut pairs: VecDeque<Pair> = VecDeque::new();
    let mut iterations = 0;
    while iterations < most && largest(&gradient) > tolerance {
        let mut direction = direction(&gradient, &pairs, &precondition);
        let mut slope = dot(&direction, &gradient);
        if slope >= 0.0 {
            // Rounding has spoilt what was remembered.
            pairs.clear();
            direction = gradient.iter().map(|g| -g).collect();
            // Of unknown length, so a small one.
            let length = largest(&direction).max(1.0);
            direction.iter_mut().for_each(|d| *d /= length);
            slope = dot(&direction, &gradient);
        }
        let mut step = 1.0;
        let mut found = None;
        for _ in 0..SHORTENINGS {
            let there: Vec<f64> = at.iter().zip(&direction).map(|(x, d)| x + step * d).collect();
            let (value_there, gradient_there) = function(&there)?;
            if value_there <= value + SUFFICIENT * step * slope {
                found = Some((there, value_there, gradient_there));
                break;
            }
            // The minimum of the parabola through both values and the slope, kept within a tenth and a half.
            let parabola = -0.5 * slope * step * step / (value_there - value - slope * step);
            step = if parabola.is_finite() { parabola.clamp(0.1 * step, 0.5 * step) } else { 0.1 * step };
        }
        let Some((there, value_there, gradient_there)) = found else { break };
        let moved: Vec<f64> = there.iter().zip(&at).map(|(a, b)| a - b).collect();
        let turned: Vec<f64> = gradient_there.iter().zip(&gradient).map(|(a, b)| a - b).collect();
        let curvature = dot(&moved, &turned);
        if curvature > 1e-12 * dot(&turned, &turned).max(f64::MIN_POSITIVE) {
            if pairs.len() == MEMORY {
                pairs.pop_front();
            }
            pairs.push_back(Pair { moved, turned, curvature });
        }
        let nothing = value - value_there <= NOTHING * value.abs().max(1.0);
        (at, value, gradient) = (there, value_there, gradient_there);
        iterations += 1;
        if nothing {
            break;
        }
    }
    Ok(Minimum { gradient: largest(&gradient), at, iterations })
}

/// A step and the change of the gradient along it.
struct Pair {
    moved: Vec<f64>,
    turned: Vec<f64>,
    /// Their product.
    curvature: f64,
}

/// The two-loop recursion: minus the approximate inverse Hessian times the gradient.
fn direction(gradient: &[f64], pairs: &VecDeque<Pair>, precondition: &impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut weights = Vec::with_capacity(pairs.len());
    for pair in pairs.iter().rev() {
        let weight = dot(&pair.moved, &q) / pair.curvature;
        add(&mut q, -weight, &pair.turned);
        weights.push(weight);
    }
    q = precondition(&q);
    if let Some(last) = pairs.back() {
        let scale = last.curvature / dot(&last.turned, &precondition(&last.turned));
        q.iter_mut().for_each(|x| *x *= scale);
    }
    for (pair, weight) in pairs.iter().zip(weights.into_iter().rev()) {
        let back = dot(&pair.turned, &q) / pair.curvature;
        add(&mut q, weight - back, &pair.moved);
    }
    q
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], times: f64, what: &[f64]) {
    to.iter_mut().zip(what).for_each(|(to, what)| *to += times * what);
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A badly scaled quadratic with its minimum at 1, 2, ..., n.
    #[test]
    fn a_quadratic_is_minimised_to_the_tolerance() {
        let n = 30;
        let function = |x: &[f64]| {
            let parts = x.iter().enumerate().map(|(i, x)| (10f64.powf(i as f64 / 10.0), x - (i + 1) as f64));
            let value = parts.clone().map(|(scale, d)| 0.5 * scale * d * d).sum();
            Ok((value, parts.map(|(scale, d)| scale * d).collect()))
        };
        let minimum = minimise(vec![0.0; n], 1e-8, 500, <[f64]>::to_vec, function).unwrap();
        assert!(minimum.iterations < 500, "{minimum:?}");
        // A decrease of 1e-9 is what the last step brought.
        assert!(minimum.at.iter().enumerate().all(|(i, x)| (x - (i + 1) as f64).abs() < 1e-3), "{minimum:?}");
    }

    #[test]
    fn the_inverse_hessian_itself_takes_one_step() {
        let function = |x: &[f64]| Ok((0.5 * x[0] * x[0] + 200.0 * x[1] * x[1], vec![x[0], 400.0 * x[1]]));
        let newton = |v: &[f64]| vec![v[0], v[1] / 400.0];
        let minimum = minimise(vec![3.0, -2.0], 1e-9, 50, newton, function).unwrap();
        assert_eq!((minimum.iterations, &minimum.at[..]), (1, &[0.0, 0.0][..]));
    }

    #[test]
    fn it_stops_where_it_is_told_to_and_where_nothing_is_gained() {
        let quadratic = |x: &[f64]| Ok((x[0] * x[0] + 50.0 * x[1] * x[1], vec![2.0 * x[0], 100.0 * x[1]]));
        assert_eq!(minimise(vec![3.0, 1.0], 0.0, 2, <[f64]>::to_vec, quadratic).unwrap().iterations, 2);
        // A function that only ever says it grows, as rounding makes one near its minimum.
        let mut value = 0.0;
        let growing = |_: &[f64]| {
            value += 1.0;
            Ok((value, vec![1.0]))
        };
        assert_eq!(minimise(vec![0.0], 1e-9, 10, <[f64]>::to_vec, growing).unwrap().iterations, 0);
    }
}
