//! Build stand-in for `cubecl-llvm`: the items that `cubecl-cuda` names, and no LLVM. See README.md.

use core::ffi::c_char;
use core::fmt;

use cubecl_core::environment::backtrace::BackTrace;
use cubecl_core::{Compiler, ir::nvidia::SmArch, prelude::KernelDefinition};
use cubecl_runtime::{compiler::CompilationError, kernel::BufferIOAttr};

/// Code generation target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// NVIDIA PTX.
    #[default]
    Nvptx,
}

/// The compiler that is never asked to compile.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// Code generation target.
    pub target: LlvmTarget,
}

/// Options of the LLVM compiler.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// Unused.
    pub arch: Option<()>,
    /// Streaming-multiprocessor architecture.
    pub sm_arch: Option<SmArch>,
    /// PTX version.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// Whether kernel parameters may be grid constants.
    pub grid_constants: bool,
}

/// A compiled PTX module.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// NUL-terminated PTX text.
    pub ptx: Vec<c_char>,
    /// Kernel name.
    pub entrypoint: String,
    /// Textual intermediate representation.
    pub ir: String,
    /// Bytes of shared memory.
    pub shared_memory_size: usize,
    /// Read/write attribute of each buffer.
    pub io: Vec<BufferIOAttr>,
}

/// What the LLVM compiler would produce.
#[derive(Clone)]
#[non_exhaustive]
pub enum PlironArtifact {
    /// PTX.
    NvptxCode(NvptxModule),
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::NvptxCode(module) = self;
        f.write_str(&module.ir)
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(&mut self, _: KernelDefinition, _: &PlironOptions) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: "gensis is built without LLVM; CUDA kernels go through NVRTC (feature cubecl/cuda-cpp)".into(),
            backtrace: BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}

/// PTX specifics.
pub mod nvptx {
    /// PTX versions.
    pub mod ptx_version {
        /// A PTX version.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct PtxVersion(u32);

        impl PtxVersion {
            /// The newest version a driver accepts: none, as no PTX is made here.
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl core::fmt::Display for PtxVersion {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "ptx{}", self.0)
            }
        }
    }
}

/// Shared with other LLVM targets.
pub mod shared {
    /// Feature lowering.
    pub mod lowered_features {
        /// GPU families.
        pub enum GpuTarget {
            /// NVIDIA.
            Nvptx,
        }

        /// Nothing to restrict: no kernel is compiled here.
        pub fn restrict_features<P>(_properties: &mut P, _target: GpuTarget) {}
    }
}
