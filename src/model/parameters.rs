//! A module's parameters by name, in PyTorch's layout, and as flat tensors for the optimiser.

use anyhow::{Result, ensure};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use std::collections::BTreeMap;

/// A tensor on the host: row-major f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    /// Lengths of the dimensions.
    pub shape: Vec<usize>,
    /// Row-major.
    pub data: Vec<f32>,
}

/// Tensors by name, in name order.
pub type Named = BTreeMap<String, Values>;

/// Every parameter of `module` under the reference's name, matrices as PyTorch stores them (`[out, in]`).
pub fn export<M: Module>(module: &M) -> Named {
    let mut reader = Reader::default();
    module.visit(&mut reader);
    reader.out
}

/// `module` with every parameter taken from `tensors`.
///
/// # Errors
/// Names that are missing, left over, or of another shape, all listed. Nothing is loaded half-way.
pub fn import<M: Module>(module: M, tensors: &Named) -> Result<M> {
    require(&shapes(&module).into_iter().collect(), tensors)?;
    Ok(module.map(&mut Writer { path: Vec::new(), tensors }))
}

/// Checks that there are exactly the `wanted` names, with those shapes.
///
/// # Errors
/// Names that are missing, left over, or of another shape, all listed.
pub fn require(wanted: &BTreeMap<String, Vec<usize>>, tensors: &Named) -> Result<()> {
    let missing: Vec<_> = wanted.keys().filter(|name| !tensors.contains_key(*name)).cloned().collect();
    let unknown: Vec<_> = tensors.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
    let misshapen: Vec<_> = wanted
        .iter()
        .filter_map(|(name, shape)| {
            let found = &tensors.get(name)?.shape;
            (found != shape).then(|| format!("{name} is {found:?}, not {shape:?}"))
        })
        .collect();
    ensure!(
        missing.is_empty() && unknown.is_empty() && misshapen.is_empty(),
        "the weights do not fit the network: {}{}{}",
        listed("missing", &missing),
        listed("left over", &unknown),
        listed("of another shape", &misshapen)
    );
    Ok(())
}

fn listed(what: &str, names: &[String]) -> String {
    match names {
        [] => String::new(),
        _ => format!("[{} {what}: {}] ", names.len(), names.join(", ")),
    }
}

/// Name and shape (PyTorch's layout) of every parameter, in the module's order.
pub fn shapes<M: Module>(module: &M) -> Vec<(String, Vec<usize>)> {
    struct Shapes(Vec<String>, Vec<(String, Vec<usize>)>);
    impl ModuleVisitor for Shapes {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let mut shape = param.val().dims().to_vec();
            if D == 2 {
                shape.reverse();
            }
            self.1.push((self.0.join("."), shape));
        }
    }
    let mut visitor = Shapes(Vec::new(), Vec::new());
    module.visit(&mut visitor);
    visitor.1
}

/// Takes the parameters out as flat tensors in the module's order, leaving one-element placeholders, so that on the CPU
/// their memory has one owner and can be changed where it lies. [`put`] is the way back.
pub fn take<M: Module>(module: &mut M) -> Vec<Tensor<1>> {
    struct Hollow;
    impl ModuleMapper for Hollow {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| Tensor::zeros([1; D], &tensor.device()))
        }
    }
    struct Take(Vec<Tensor<1>>);
    impl ModuleMapper for Take {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, tensor, _) = param.consume();
            let device = tensor.device();
            self.0.push(tensor.reshape([-1]));
            Param::initialized(id, Tensor::zeros([1; D], &device))
        }
    }
    let hollow = module.clone().map(&mut Hollow);
    let full = std::mem::replace(module, hollow);
    let mut taken = Take(Vec::new());
    full.map(&mut taken);
    taken.0
}

/// Puts flat tensors back in the places [`take`] took them from; `shapes` are those of [`shapes`].
pub fn put<M: Module>(module: &mut M, flat: Vec<Tensor<1>>, shapes: &[Vec<usize>]) {
    struct Put<'a>(std::vec::IntoIter<Tensor<1>>, std::slice::Iter<'a, Vec<usize>>);
    impl ModuleMapper for Put<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (Some(flat), Some(shape)) = (self.0.next(), self.1.next()) else { return param };
            param.map(|_| flat.reshape(stored_shape::<D>(shape)))
        }
    }
    *module = module.clone().map(&mut Put(flat.into_iter(), shapes.iter()));
}

/// The shape a parameter is stored in here: PyTorch's, but matrices transposed.
fn stored_shape<const D: usize>(shape: &[usize]) -> [usize; D] {
    let mut stored: [usize; D] = std::array::from_fn(|i| shape[i]);
    if D == 2 {
        stored.reverse();
    }
    stored
}

/// Row-major `[rows, columns] -> [columns, rows]`.
pub fn transposed(data: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(data.len());
    for column in 0..columns {
        out.extend((0..rows).map(|row| data[row * columns + column]));
    }
    out
}

#[derive(Default)]
struct Reader {
    path: Vec<String>,
    out: Named,
}

impl ModuleVisitor for Reader {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.into());
    }
    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val().without_autodiff();
        let mut shape = tensor.dims().to_vec();
        let mut data = tensor.into_data().try_into_vec::<f32>().expect("parameters are f32");
        if D == 2 {
            data = transposed(&data, shape[0], shape[1]);
            shape.reverse();
        }
        self.out.insert(self.path.join("."), Values { shape, data });
    }
}

struct Writer<'a> {
    path: Vec<String>,
    tensors: &'a Named,
}

impl ModuleMapper for Writer<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.into());
    }
    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let values = &self.tensors[&self.path.join(".")];
        // Transposed on the host, not as a view: products of a view need not round the same.
        let data =
            if D == 2 { transposed(&values.data, values.shape[0], values.shape[1]) } else { values.data.clone() };
        let shape = stored_shape::<D>(&values.shape);
        param.map(|old| Tensor::from_data(TensorData::new(data, shape), &old.device()))
    }
}
