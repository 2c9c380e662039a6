//! The vision transformer of DINO (`vision_transformer.py`), with timm's parameter names.
//!
//! Images `[B, 3, H, W]` become tokens `[B, 1 + N, D]` of which the first, CLS, is the image's embedding. Any image of
//! at least one patch will do: sides that are no multiple of the patch are floored away, and the position embedding is
//! interpolated where the grid differs from the one it was made for.

use super::layers::{LayerNorm, Linear, for_product, parameter, single};
use super::random;
use crate::config::{Model, Precision};
use burn::module::{Module, Param};
use burn::tensor::activation::{gelu, softmax};
use burn::tensor::{Device, Tensor, TensorData};
use rand::RngExt;

/// A vision transformer.
#[derive(Module, Debug)]
pub struct Vit {
    /// `[1, 1, D]`.
    pub cls_token: Param<Tensor<3>>,
    /// `[1, 1 + grid * grid, D]`, the first row for CLS.
    pub pos_embed: Param<Tensor<3>>,
    /// Pixels to tokens.
    pub patch_embed: PatchEmbed,
    /// Transformer blocks, pre-norm.
    pub blocks: Vec<Block>,
    /// Final normalisation.
    pub norm: LayerNorm,
    #[module(skip)]
    patch: usize,
    #[module(skip)]
    grid: usize,
    #[module(skip)]
    precision: Precision,
}

/// Pixels to tokens.
#[derive(Module, Debug)]
pub struct PatchEmbed {
    /// A convolution whose stride is its kernel.
    pub proj: PatchProjection,
}

/// The convolution of [`PatchEmbed`], computed as a product with unfolded patches.
#[derive(Module, Debug)]
pub struct PatchProjection {
    /// `[D, 3, patch, patch]`.
    pub weight: Param<Tensor<4>>,
    /// `[D]`.
    pub bias: Param<Tensor<1>>,
}

/// Attention, then a two-layer perceptron, each normalised before and added to what came in.
#[derive(Module, Debug)]
pub struct Block {
    /// Before the attention.
    pub norm1: LayerNorm,
    /// Multi-head self-attention.
    pub attn: Attention,
    /// Before the perceptron.
    pub norm2: LayerNorm,
    /// Perceptron.
    pub mlp: Mlp,
}

/// Multi-head self-attention.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, keys and values, laid out `[3][head][width of a head]`.
    pub qkv: Linear,
    /// Heads back to tokens.
    pub proj: Linear,
    #[module(skip)]
    heads: usize,
}

/// Linear, GELU (the exact one), linear.
#[derive(Module, Debug)]
pub struct Mlp {
    /// To four times the width.
    pub fc1: Linear,
    /// And back.
    pub fc2: Linear,
}

/// Which residual branches of which rows are dropped, and how much the survivors are scaled: one draw.
///
/// Made on the host from the seed, the step and each row's own number, so that neither the device nor the split of a
/// batch into micro-batches changes it.
#[derive(Clone, Debug)]
pub struct StochasticDepth {
    /// Per block: factors `[rows, 1, 1]` of the attention and of the perceptron; none where nothing is dropped.
    blocks: Vec<Option<[Tensor<3>; 2]>>,
}

impl StochasticDepth {
    /// Draws for `rows` (each row's number in the whole batch) at `step`. The rate grows linearly from 0 at the first
    /// block to `model.drop_path` at the last. None where that is 0.
    pub fn draw(model: &Model, seed: u64, step: u64, rows: &[u64], device: &Device) -> Option<Self> {
        if model.drop_path == 0.0 {
            return None;
        }
        let factors: Vec<[f32; 2]> = rows
            .iter()
            .flat_map(|row| {
                let mut rng = random::keyed(seed, "stochastic depth", &[step, *row]);
                drop_rates(model.drop_path, model.depth)
                    .map(|rate| [rng.random::<f64>(), rng.random::<f64>()].map(|u| survival(rate, u)))
                    .collect::<Vec<_>>()
            })
            .collect();
        let branch = |block: usize, branch: usize| {
            let values = (0..rows.len()).map(|row| factors[row * model.depth + block][branch]).collect();
            Tensor::from_data(TensorData::new(values, [rows.len(), 1, 1]), device)
        };
        let blocks = drop_rates(model.drop_path, model.depth)
            .enumerate()
            .map(|(i, rate)| (rate > 0.0).then(|| [branch(i, 0), branch(i, 1)]))
            .collect();
        Some(Self { blocks })
    }
}

fn drop_rates(largest: f64, depth: usize) -> impl Iterator<Item = f64> {
    (0..depth).map(move |i| if depth == 1 { 0.0 } else { largest * i as f64 / (depth - 1) as f64 })
}

/// 0 for a dropped branch, 1/keep for a surviving one; a branch survives where floor(keep + u) is 1.
fn survival(rate: f64, u: f64) -> f32 {
    let keep = 1.0 - rate;
    ((keep + u).floor() / keep) as f32
}

impl Vit {
    /// A network with the reference's initialisation: `model` is resolved (see [`Model::resolve`]), `seed` decides.
    pub fn new(model: &Model, seed: u64, device: &Device) -> Self {
        let (dim, patch) = (model.dim, model.patch);
        let grid = model.image_size / patch;
        let draw = |name: &str, count| random::normal(&mut random::keyed(seed, name, &[]), 0.02, count);
        let blocks = (0..model.depth).map(|i| Block::new(model, seed, &format!("blocks.{i}"), device)).collect();
        Self {
            cls_token: parameter(draw("cls_token", dim), [1, 1, dim], device),
            pos_embed: parameter(draw("pos_embed", (1 + grid * grid) * dim), [1, 1 + grid * grid, dim], device),
            patch_embed: PatchEmbed { proj: PatchProjection::new(dim, patch, seed, device) },
            blocks,
            norm: LayerNorm::new(dim, device),
            patch,
            grid,
            precision: Precision::F32,
        }
    }

    /// The same network computing its products in `precision`.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Width of the embedding.
    pub fn dim(&self) -> usize {
        self.norm.weight.dims()[0]
    }

    /// CLS of the last block, normalised: `[B, 3, H, W] -> [B, D]`.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        self.encode(images, None)
    }

    /// As [`forward`](Self::forward), with residual branches dropped.
    pub fn encode(&self, images: Tensor<4>, depth: Option<&StochasticDepth>) -> Tensor<2> {
        let mut x = self.embed(images);
        let last = self.blocks.len() - 1;
        for (i, block) in self.blocks.iter().enumerate() {
            // Of the last block only CLS is needed: it sees all tokens, but no other token has to be computed.
            let asked = if i == last { 1 } else { x.dims()[1] };
            x = block.forward_some(x, asked, self.precision, depth.and_then(|d| d.blocks[i].as_ref()));
        }
        self.norm.forward(x).squeeze_dim(1)
    }

    /// CLS of the last `n` blocks, each passed through the final normalisation, beside each other, the last block's at the
    /// end: `[B, 3, H, W] -> [B, n * D]`. The features of DINO's linear probe.
    pub fn last_cls(&self, images: Tensor<4>, n: usize) -> Tensor<2> {
        if n == 1 {
            return self.forward(images);
        }
        let cls = |tokens: Tensor<3>| tokens.narrow(1, 0, 1).squeeze_dim(1);
        Tensor::cat(self.intermediate(images, n).into_iter().map(cls).collect(), 1)
    }

    /// All tokens of the last block, normalised: `[B, 3, H, W] -> [B, 1 + N, D]`.
    pub fn forward_tokens(&self, images: Tensor<4>) -> Tensor<3> {
        let x = self.blocks.iter().fold(self.embed(images), |x, block| block.forward(x, self.precision));
        self.norm.forward(x)
    }

    /// Outputs of the last `n` blocks, each passed through the final normalisation.
    pub fn intermediate(&self, images: Tensor<4>, n: usize) -> Vec<Tensor<3>> {
        let mut x = self.embed(images);
        let mut outputs = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(x, self.precision);
            if i + n >= self.blocks.len() {
                outputs.push(self.norm.forward(x.clone()));
            }
        }
        outputs
    }

    /// Attention of the last block: `[B, heads, 1 + N, 1 + N]`, rows sum to 1.
    pub fn last_attention(&self, images: Tensor<4>) -> Tensor<4> {
        let (last, before) = self.blocks.split_last().expect("a resolved model has a block");
        let x = before.iter().fold(self.embed(images), |x, block| block.forward(x, self.precision));
        let tokens = x.dims()[1];
        let [q, k, _] = last.attn.heads(last.norm1.forward(x), tokens, self.precision);
        single(last.attn.scores(q, k, self.precision), self.precision)
    }

    /// Pixels to tokens with their positions, CLS first.
    fn embed(&self, images: Tensor<4>) -> Tensor<3> {
        let [batch, _, height, width] = images.dims();
        let [rows, columns] = [height / self.patch, width / self.patch];
        let x = self.patch_embed.proj.forward(images, rows, columns, self.precision);
        let cls = self.cls_token.val().expand([batch, 1, self.dim()]);
        Tensor::cat(vec![cls, x], 1) + self.positions(rows, columns)
    }

    /// The position embedding for a grid of `rows` x `columns`: `[1, 1 + rows * columns, D]`.
    fn positions(&self, rows: usize, columns: usize) -> Tensor<3> {
        let positions = self.pos_embed.val();
        if rows == self.grid && columns == self.grid {
            return positions;
        }
        let (device, grid, dim) = (positions.device(), self.grid, self.dim());
        let matrix = |to: usize| Tensor::<2>::from_data(TensorData::new(bicubic_matrix(grid, to), [to, grid]), &device);
        let patches = positions.clone().narrow(1, 1, grid * grid).reshape([grid, grid * dim]);
        let tall = matrix(rows).matmul(patches).reshape([rows, grid, dim]).swap_dims(0, 1).reshape([grid, rows * dim]);
        let full = matrix(columns).matmul(tall).reshape([columns, rows, dim]).swap_dims(0, 1);
        Tensor::cat(vec![positions.narrow(1, 0, 1), full.reshape([1, rows * columns, dim])], 1)
    }
}

/// Row-major `[to, from]` matrix of PyTorch's bicubic interpolation (a = -0.75, no antialias, border clamped) as DINO
/// calls it: the scale is (to + 0.1) / from, and the given scale is used, not the ratio of sizes.
fn bicubic_matrix(from: usize, to: usize) -> Vec<f32> {
    let mut matrix = vec![0.0; to * from];
    for row in 0..to {
        let source = source_coordinate(row, from, to);
        for (k, weight) in cubic_weights(source - source.floor()).into_iter().enumerate() {
            let column = (source.floor() as i64 + k as i64 - 1).clamp(0, from as i64 - 1) as usize;
            matrix[row * from + column] += weight as f32;
        }
    }
    matrix
}

/// Weights of the four cells around a point at `t` in [0, 1) between the middle two.
fn cubic_weights(t: f64) -> [f64; 4] {
    const A: f64 = -0.75;
    let near = |t: f64| ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0;
    let far = |t: f64| ((A * t - 5.0 * A) * t + 8.0 * A) * t - 4.0 * A;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}

fn source_coordinate(row: usize, from: usize, to: usize) -> f64 {
    (row as f64 + 0.5) * from as f64 / (to as f64 + 0.1) - 0.5
}

impl PatchProjection {
    /// PyTorch's initialisation of a convolution, which the reference leaves alone: uniform on ±1/sqrt(inputs).
    fn new(dim: usize, patch: usize, seed: u64, device: &Device) -> Self {
        let inputs = 3 * patch * patch;
        let draw = |name: &str, count| {
            random::uniform(&mut random::keyed(seed, name, &[]), 1.0 / (inputs as f64).sqrt(), count)
        };
        Self {
            weight: parameter(draw("patch_embed.proj.weight", dim * inputs), [dim, 3, patch, patch], device),
            bias: parameter(draw("patch_embed.proj.bias", dim), [dim], device),
        }
    }

    /// `[B, 3, H, W] -> [B, rows * columns, D]` in f32.
    fn forward(&self, images: Tensor<4>, rows: usize, columns: usize, precision: Precision) -> Tensor<3> {
        let [dim, channels, patch, _] = self.weight.dims();
        let batch = images.dims()[0];
        let unfolded = images
            .narrow(2, 0, rows * patch)
            .narrow(3, 0, columns * patch)
            .reshape([batch, channels, rows, patch, columns, patch])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch * rows * columns, channels * patch * patch]);
        let weight = self.weight.val().reshape([dim, channels * patch * patch]).transpose();
        let tokens = for_product(unfolded, precision).matmul(for_product(weight, precision));
        (single(tokens, precision) + self.bias.val().unsqueeze()).reshape([batch, rows * columns, dim])
    }
}

impl Block {
    fn new(model: &Model, seed: u64, name: &str, device: &Device) -> Self {
        let dim = model.dim;
        let linear = |from, to, part: &str| Linear::new(from, to, seed, &format!("{name}.{part}.weight"), device);
        Self {
            norm1: LayerNorm::new(dim, device),
            attn: Attention {
                qkv: linear(dim, 3 * dim, "attn.qkv"),
                proj: linear(dim, dim, "attn.proj"),
                heads: model.heads,
            },
            norm2: LayerNorm::new(dim, device),
            mlp: Mlp { fc1: linear(dim, 4 * dim, "mlp.fc1"), fc2: linear(4 * dim, dim, "mlp.fc2") },
        }
    }

    fn forward(&self, x: Tensor<3>, precision: Precision) -> Tensor<3> {
        let tokens = x.dims()[1];
        self.forward_some(x, tokens, precision, None)
    }

    /// The block's output for the first `asked` tokens.
    fn forward_some(
        &self,
        x: Tensor<3>,
        asked: usize,
        precision: Precision,
        depth: Option<&[Tensor<3>; 2]>,
    ) -> Tensor<3> {
        let branch = |y: Tensor<3>, which: usize| match depth {
            Some(factors) => single(y, precision) * factors[which].clone(),
            None => single(y, precision),
        };
        let mixed = self.attn.forward(self.norm1.forward(x.clone()), asked, precision);
        let x = first(x, asked) + branch(mixed, 0);
        x.clone() + branch(self.mlp.forward(self.norm2.forward(x), precision), 1)
    }
}

/// The first `count` tokens.
fn first(x: Tensor<3>, count: usize) -> Tensor<3> {
    if x.dims()[1] == count { x } else { x.narrow(1, 0, count) }
}

impl Attention {
    /// `[B, N, D] -> [B, asked, D]`, in the product's type.
    fn forward(&self, x: Tensor<3>, asked: usize, precision: Precision) -> Tensor<3> {
        let [batch, _, dim] = x.dims();
        let [q, k, v] = self.heads(x, asked, precision);
        let mixed = self.scores(q, k, precision).matmul(v);
        self.proj.forward(mixed.swap_dims(1, 2).reshape([batch, asked, dim]), precision)
    }

    /// Queries of the first `asked` tokens, keys and values of all: each `[B, heads, tokens, width of a head]`.
    fn heads(&self, x: Tensor<3>, asked: usize, precision: Precision) -> [Tensor<4>; 3] {
        let part = |x: Tensor<3>, which: usize| {
            let [batch, tokens, dim] = x.dims();
            let y = self.qkv.forward_part(x, which, 3, precision);
            y.reshape([batch, tokens, self.heads, dim / self.heads]).swap_dims(1, 2)
        };
        [part(first(x.clone(), asked), 0), part(x.clone(), 1), part(x, 2)]
    }

    /// softmax(q kᵀ / sqrt(width)), the softmax in f32.
    fn scores(&self, q: Tensor<4>, k: Tensor<4>, precision: Precision) -> Tensor<4> {
        let scale = (q.dims()[3] as f64).powf(-0.5);
        let scores = single((q * scale).matmul(k.transpose()), precision);
        for_product(softmax(scores, 3), precision)
    }
}

impl Mlp {
    fn forward(&self, x: Tensor<3>, precision: Precision) -> Tensor<3> {
        self.fc2.forward(gelu(self.fc1.forward(x, precision)), precision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Head, Model};
    use crate::model::parameters;
    use crate::model::projection::DinoHead;

    fn close(found: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < tolerance, "{found:?} is not {expected:?}");
    }

    fn tiny() -> Model {
        let base =
            Model { arch: "custom".into(), patch: 4, image_size: 16, dim: 16, depth: 3, heads: 2, drop_path: 0.1 };
        base.resolve().unwrap()
    }

    fn images(batch: usize, height: usize, width: usize) -> Tensor<4> {
        let values = random::normal(&mut random::keyed(0, "images", &[]), 1.0, batch * 3 * height * width);
        Tensor::from_data(TensorData::new(values, [batch, 3, height, width]), &Device::flex())
    }

    fn list<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_into_vec().unwrap()
    }

    #[test]
    fn vit_small_and_its_head_have_the_published_numbers_of_parameters() {
        let model = Model::default().resolve().unwrap();
        let device = Device::flex();
        assert_eq!(Vit::new(&model, 0, &device).num_params(), 21_665_664);
        let head = Head { norm_last_layer: false, ..Head::default() };
        let gains = head.out;
        assert_eq!(DinoHead::new(model.dim, &head, 0, &device).num_params(), 22_286_592 + gains);
    }

    /// Six rows of a 96 px crop from a grid of 14: worked numbers with 6 digits.
    #[test]
    fn positions_are_resampled_with_the_given_scale() {
        let sources: Vec<_> = (0..6).map(|row| source_coordinate(row, 14, 6)).collect();
        close(&sources, &[0.647541, 2.942623, 5.237705, 7.532787, 9.827869, 12.122951], 1e-6);
        let matrix = bicubic_matrix(14, 6);
        let squares: Vec<_> =
            (0..6).map(|row| (0..14).map(|k| f64::from(matrix[row * 14 + k]) * (k * k) as f64).sum::<f64>()).collect();
        // f32 weights of values up to 169.
        close(&squares, &[0.331852, 8.512291, 27.865762, 56.495994, 95.628038, 148.196967], 2e-5);
        let halfway: Vec<f64> = cubic_weights(0.5).to_vec();
        close(&halfway, &[-0.09375, 0.59375, 0.59375, -0.09375], 1e-15);
    }

    #[test]
    fn only_another_grid_changes_the_positions() {
        let device = Device::flex();
        let vit = Vit::new(&tiny(), 1, &device);
        assert_eq!(list(vit.positions(4, 4)), list(vit.pos_embed.val()));
        let other = vit.positions(2, 6);
        assert_eq!(other.dims(), [1, 13, 16]);
        assert_eq!(list(other.narrow(1, 0, 1)), list(vit.pos_embed.val().narrow(1, 0, 1)));
    }

    #[test]
    fn what_is_no_multiple_of_the_patch_is_floored_away() {
        let vit = Vit::new(&tiny(), 1, &Device::flex());
        let whole = images(2, 19, 22);
        let cut = whole.clone().narrow(2, 0, 16).narrow(3, 0, 20);
        assert_eq!(list(vit.forward(whole)), list(vit.forward(cut)));
    }

    #[test]
    fn cls_is_the_first_token_and_the_last_intermediate_output() {
        let vit = Vit::new(&tiny(), 1, &Device::flex());
        let x = images(2, 16, 16);
        let cls = list(vit.forward(x.clone()));
        let tokens = vit.forward_tokens(x.clone());
        assert_eq!(tokens.dims(), [2, 17, 16]);
        let to64 = |v: Vec<f32>| v.into_iter().map(f64::from).collect::<Vec<_>>();
        // Computed alone, CLS is rounded differently.
        close(&to64(list(tokens.clone().narrow(1, 0, 1))), &to64(cls), 2e-6);
        let both = list(vit.last_cls(x.clone(), 2));
        assert_eq!(both.len(), 2 * 2 * 16);
        assert_eq!(list(vit.last_cls(x.clone(), 1)), list(vit.forward(x.clone())));
        let outputs = vit.intermediate(x.clone(), 2);
        let cls_of =
            |block: usize, image: usize| list(outputs[block].clone().narrow(1, 0, 1))[image * 16..][..16].to_vec();
        assert_eq!(both, [cls_of(0, 0), cls_of(1, 0), cls_of(0, 1), cls_of(1, 1)].concat());
        assert_eq!(outputs.len(), 2);
        assert_eq!(list(outputs[1].clone()), list(tokens));
        let attention = vit.last_attention(x);
        assert_eq!(attention.dims(), [2, 2, 17, 17]);
        close(&to64(list(attention.sum_dim(3))), &[1.0; 2 * 2 * 17], 1e-6);
    }

    #[test]
    fn the_initialisation_is_the_references() {
        let model = Model { drop_path: 0.0, ..Model::default() }.resolve().unwrap();
        let device = Device::flex();
        let named = parameters::export(&Vit::new(&model, 5, &device));
        let deviation = |name: &str| {
            let data = &named[name].data;
            (data.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / data.len() as f64).sqrt()
        };
        // The deviation of n draws is known to 1 / sqrt(2 n): 3 % for the 384 of the CLS token, four of them allowed.
        for (name, expected, share) in [
            ("cls_token", 0.02, 0.15),
            ("pos_embed", 0.02, 0.02),
            ("blocks.3.attn.qkv.weight", 0.02, 0.01),
            // U(±b) has deviation b / sqrt(3), b = 1 / sqrt(768).
            ("patch_embed.proj.weight", 1.0 / (3.0f64 * 768.0).sqrt(), 0.01),
            ("patch_embed.proj.bias", 1.0 / (3.0f64 * 768.0).sqrt(), 0.15),
        ] {
            assert!((deviation(name) / expected - 1.0).abs() < share, "{name}: {}", deviation(name));
        }
        assert!(named["blocks.0.mlp.fc1.bias"].data.iter().all(|v| *v == 0.0));
        assert!(named["norm.weight"].data.iter().all(|v| *v == 1.0));
        assert_eq!(named["blocks.0.attn.qkv.weight"].shape, [3 * 384, 384]);
        assert_ne!(named["blocks.0.attn.qkv.weight"].data, named["blocks.1.attn.qkv.weight"].data);
    }

    #[test]
    fn stochastic_depth_belongs_to_the_row() {
        let (device, model) = (Device::flex(), Model { drop_path: 0.5, ..tiny() });
        let factors = |rows: &[u64]| {
            let depth = StochasticDepth::draw(&model, 7, 11, rows, &device).unwrap();
            assert!(depth.blocks[0].is_none());
            depth.blocks[2].clone().unwrap().map(list)
        };
        let rows: Vec<u64> = (0..400).collect();
        let all = factors(&rows);
        assert_eq!(factors(&rows[100..200])[0], all[0][100..200]);
        // Rate 0.5 at the last block: dropped or doubled, half of them within four standard errors.
        let kept = all[1].iter().filter(|f| **f == 2.0).count();
        assert_eq!(all[1].iter().filter(|f| **f == 0.0).count() + kept, 400);
        assert!(kept.abs_diff(200) < 40, "{kept}");
        assert_ne!(all[0], all[1]);
        assert!(StochasticDepth::draw(&Model { drop_path: 0.0, ..model }, 7, 11, &rows, &device).is_none());
    }

    #[test]
    fn a_dropped_branch_adds_nothing() {
        let (device, model) = (Device::flex(), tiny());
        let vit = Vit::new(&model, 1, &device);
        let x = images(1, 16, 16);
        let all_dropped = || Some([Tensor::zeros([1, 1, 1], &device), Tensor::zeros([1, 1, 1], &device)]);
        let depth = StochasticDepth { blocks: (0..3).map(|_| all_dropped()).collect() };
        let expected = vit.norm.forward(vit.embed(x.clone()).narrow(1, 0, 1));
        assert_eq!(list(vit.encode(x, Some(&depth))), list(expected));
    }

    #[test]
    fn unresolvable_models_are_refused() {
        let refuse = |model: Model| model.resolve().unwrap_err().to_string();
        assert!(refuse(Model { arch: "vit_huge".into(), ..Model::default() }).contains("vit_huge"));
        assert!(refuse(Model { arch: "custom".into(), ..Model::default() }).contains("model.dim"));
        assert!(refuse(Model { heads: 5, ..Model::default() }).contains("multiple"));
        assert!(refuse(Model { image_size: 8, ..Model::default() }).contains("patch"));
    }
}
