//! DINO's cross-entropy and Gen-DINO's disentanglement loss, with their gradients in closed form: the graph of the
//! backward pass begins at the logits.

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Tensor, TensorData};

/// The multi-crop loss and its gradient: `logits` of the student `[crops * B, K]` crop-major, `teacher` its soft
/// targets `[2 B, K]` of the first two crops. Mean over the 2 crops - 2 pairs of different crops, and over the batch.
pub fn multi_crop_loss(logits: Tensor<2>, teacher: Tensor<2>, student_temp: f64) -> (Tensor<1>, Tensor<2>) {
    let [rows, _] = logits.dims();
    let [two, _] = teacher.dims();
    let batch = two / 2;
    let crops = rows / batch;
    let first = teacher.clone().narrow(0, 0, batch);
    let second = teacher.narrow(0, batch, batch);
    // What each crop is pulled to, summed over teachers: the two globals to each other, a local to both.
    let mut targets = vec![second.clone(), first.clone()];
    if crops > 2 {
        targets.push((first + second).repeat_dim(0, crops - 2));
    }
    let pulls = (0..rows).map(|row| if row < two { 1.0 } else { 2.0 }).collect();
    let pairs = 2 * crops - 2;
    cross_entropy(logits, Tensor::cat(targets, 0), pulls, student_temp, (pairs * batch) as f64)
}

/// `-Σ targets · log softmax(logits / temp) / count` and its gradient by the logits. Row i of `targets` is a sum of
/// `pulls[i]` distributions.
pub fn cross_entropy(
    logits: Tensor<2>,
    targets: Tensor<2>,
    pulls: Vec<f32>,
    temp: f64,
    count: f64,
) -> (Tensor<1>, Tensor<2>) {
    let device = logits.device();
    let log = log_softmax(logits.div_scalar(temp), 1);
    let loss = (targets.clone() * log.clone()).sum().div_scalar(-count);
    let rows = pulls.len();
    let pulls = Tensor::<2>::from_data(TensorData::new(pulls, [rows, 1]), &device);
    let slope = (log.exp() * pulls - targets).div_scalar(temp * count);
    (loss, slope)
}

/// What the student's view of an interpolated image is pulled to: `softmax((α t1 + (1-α) t2 - c) / temp)`, `[B, K]`, of
/// raw teacher logits `first` and `second`, `[B, K]`, weights `alpha` of the first, `[B, 1]`, and the centre, `[1, K]`.
///
/// Logits are mixed, not probabilities, and centred once. Source: Gen-SIS, pseudo-code of the project page.
pub fn mixed_targets(first: Tensor<2>, second: Tensor<2>, alpha: Tensor<2>, center: Tensor<2>, temp: f64) -> Tensor<2> {
    let mixed = first * alpha.clone() + second * alpha.neg().add_scalar(1.0);
    softmax((mixed - center).div_scalar(temp), 1)
}

/// The disentanglement loss and its gradient: `logits` of the student's views of interpolated images, `[B, K]`, against
/// one or more sets of [`mixed_targets`], `[B, K]` each. Mean over sets and batch.
pub fn disentanglement_loss(logits: Tensor<2>, targets: Vec<Tensor<2>>, student_temp: f64) -> (Tensor<1>, Tensor<2>) {
    let [batch, _] = logits.dims();
    let sets = targets.len();
    // Cross-entropy is linear in its target, so a mean of losses is the loss of a mean.
    let sum = targets.into_iter().reduce(|a, b| a + b).unwrap_or_else(|| logits.zeros_like());
    cross_entropy(logits, sum, vec![sets as f32; batch], student_temp, (sets.max(1) * batch) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn tensor<const R: usize>(rows: [[f32; 3]; R]) -> Tensor<2> {
        Tensor::from_floats(rows, &Device::flex())
    }

    fn list<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_into_vec().unwrap()
    }

    const TEACHER: [[f32; 3]; 2] = [[0.10, 0.02, -0.05], [0.03, 0.08, -0.02]];
    const STUDENT: [[f32; 3]; 3] = [[0.1, 0.0, -0.1], [0.0, 0.2, 0.1], [0.05, -0.05, 0.0]];

    fn soft_teacher() -> Tensor<2> {
        softmax((tensor(TEACHER) - tensor([[0.01, 0.0, -0.01]])).div_scalar(0.04), 1)
    }

    /// Worked numbers with 7 digits, so 1e-6.
    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-6, "{found:?} is not {expected:?}");
    }

    #[test]
    fn the_loss_of_three_crops_is_the_worked_one() {
        let soft = soft_teacher();
        close(&list(soft.clone()), &[0.8247095, 0.143_313, 0.0319775, 0.1679527, 0.752_712, 0.0793353]);
        let (loss, _) = multi_crop_loss(tensor(STUDENT), soft.clone(), 0.1);
        close(&list(loss), &[1.4300529]);
        // The four terms by themselves: (teacher, student) crops.
        for (t, s, term) in [(0, 1, 2.0890025), (0, 2, 0.8395714), (1, 0, 1.3189885), (1, 2, 1.4726493)] {
            let (loss, _) = cross_entropy(tensor([STUDENT[s]]), soft.clone().narrow(0, t, 1), vec![1.0], 0.1, 1.0);
            close(&list(loss), &[term]);
        }
    }

    #[test]
    fn the_centre_follows_the_raw_logits_of_both_crops() {
        let center =
            super::super::dino::next_center(tensor([[0.01, 0.0, -0.01]]), tensor(TEACHER).sum_dim(0), 2.0, 0.9);
        close(&list(center), &[0.0155, 0.005, -0.0125]);
    }

    #[test]
    fn the_slope_of_the_loss_is_that_of_autodiff() {
        let live = Tensor::<2>::from_inner(tensor(STUDENT)).require_grad();
        let log = log_softmax(live.clone().div_scalar(0.1), 1);
        let soft = Tensor::from_inner(soft_teacher());
        let pair = |t: usize, s: usize| (soft.clone().narrow(0, t, 1) * log.clone().narrow(0, s, 1)).sum();
        let loss = (pair(0, 1) + pair(0, 2) + pair(1, 0) + pair(1, 2)).div_scalar(-4.0);
        let expected = live.grad(&loss.backward()).unwrap();
        let (_, slope) = multi_crop_loss(tensor(STUDENT), soft_teacher(), 0.1);
        close(&list(slope), &list(expected));
    }

    const INTERPOLATED: [[f32; 3]; 1] = [[0.05, -0.05, 0.0]];
    const CENTER: [[f32; 3]; 1] = [[0.01, 0.0, -0.01]];

    fn mixed(alpha: f32) -> Tensor<2> {
        let teacher = tensor(TEACHER);
        let (first, second) = (teacher.clone().narrow(0, 0, 1), teacher.narrow(0, 1, 1));
        mixed_targets(first, second, Tensor::from_floats([[alpha]], &Device::flex()), tensor(CENTER), 0.04)
    }

    #[test]
    fn the_disentanglement_loss_is_the_worked_one() {
        close(&list(mixed(0.7)), &[0.6481769, 0.2986175, 0.0532056]);
        close(&list(mixed(0.5)), &[0.4955814, 0.437_349, 0.0670696]);
        for (alpha, expected) in [(1.0, 0.8395714), (0.7, 1.00549), (0.5, 1.1511535)] {
            close(&list(disentanglement_loss(tensor(INTERPOLATED), vec![mixed(alpha)], 0.1).0), &[expected]);
        }
        // Two pairs of targets: the mean of their losses.
        let both = disentanglement_loss(tensor(INTERPOLATED), vec![mixed(1.0), mixed(0.5)], 0.1).0;
        close(&list(both), &[(0.8395714 + 1.1511535) / 2.0]);
    }

    /// With all the weight on the first image the loss is DINO's term of its global view against another crop.
    #[test]
    fn alpha_of_one_is_the_cross_term_of_dino() {
        let first = soft_teacher().narrow(0, 0, 1);
        close(&list(mixed(1.0)), &list(first.clone()));
        let (ordinary, slope) = cross_entropy(tensor([STUDENT[2]]), first, vec![1.0], 0.1, 1.0);
        let (loss, found) = disentanglement_loss(tensor([STUDENT[2]]), vec![mixed(1.0)], 0.1);
        close(&list(loss), &list(ordinary));
        close(&list(found), &list(slope));
    }

    #[test]
    fn the_slope_of_the_disentanglement_loss_is_that_of_autodiff() {
        let live = Tensor::<2>::from_inner(tensor([STUDENT[0], STUDENT[1]])).require_grad();
        let targets =
            || vec![Tensor::cat(vec![mixed(0.7), mixed(0.5)], 0), Tensor::cat(vec![mixed(0.2), mixed(1.0)], 0)];
        let log = log_softmax(live.clone().div_scalar(0.1), 1);
        let loss = targets().into_iter().map(|set| (Tensor::from_inner(set) * log.clone()).sum()).reduce(|a, b| a + b);
        let expected = live.grad(&loss.unwrap().div_scalar(-4.0).backward()).unwrap();
        let (_, slope) = disentanglement_loss(tensor([STUDENT[0], STUDENT[1]]), targets(), 0.1);
        close(&list(slope), &list(expected));
    }
}
