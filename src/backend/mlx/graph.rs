//! Nodes of the lazy graph, by MLX's own calls on a stream that is taken once.
//!
//! mlx-rs asks for the default device and its stream at each call, and takes most arguments by a handle of their own. A decode
//! step makes over a thousand nodes, so that this is time the device waits for. A call that fails is made again through
//! mlx-rs, which alone has MLX's words for what was wrong.

use std::cell::RefCell;
use std::ffi::CStr;
use std::rc::Rc;

use half::{bf16, f16};
use mlx_rs::{Array, Dtype, Stream, fast, ops};

use super::dims::Dims;
use super::failed;
use crate::error::Result;

/// Steps of 1 in every dimension: MLX's arrays have at most as many here.
const ONES: [i32; 8] = [1; 8];

/// A matrix as MLX's quantized ops take it.
pub(super) struct QuantArrays {
    pub codes: Rc<Array>,          // [N, K · bits / 32], 32-bit words
    pub scales: Rc<Array>,         // [N, K / group]
    pub biases: Option<Rc<Array>>, // as the scales; affine alone
    pub bits: i32,
    pub group: i32,
    pub mode: &'static CStr,
}

/// The stream that nodes are made on, and the constants that they share.
pub(super) struct Graph {
    stream: Stream,
    /// Few, since a model has few numbers.
    constants: RefCell<Vec<Constant>>,
}

/// A number in a type and shape.
struct Constant {
    bits: u32,
    dtype: Dtype,
    dims: Dims,
    array: Rc<Array>,
}

/// The array that an MLX call makes; where it fails, that of `$again`.
macro_rules! node {
    ($graph:ident, $name:literal, $call:ident($($arg:expr),*), $again:expr) => {{
        // SAFETY: the stream and the arrays are borrowed for the call, and each list is passed with its length; `made` is
        // written by this call alone.
        let made = unsafe {
            let mut made = mlx_sys::mlx_array_new();
            let status = mlx_sys::$call(&mut made, $($arg,)* $graph.stream.as_ptr());
            own(made, status)
        };
        match made {
            Some(array) => Ok(array),
            None => $again.map_err(|error| failed($name, &error)),
        }
    }};
}

/// # Safety
/// `made` is what an MLX call with this status wrote, and nothing else owns it.
unsafe fn own(made: mlx_sys::mlx_array, status: i32) -> Option<Array> {
    // SAFETY: the caller's promise; the empty array of a failed call is freed by its owner here.
    let array = unsafe { Array::from_ptr(made) };
    (status == 0).then_some(array)
}

impl Graph {
    /// On the calling thread's default stream. MLX must have been called before through mlx-rs, which then handles its
    /// errors.
    pub(super) fn new() -> Self {
        Self { stream: Stream::thread_local_or_default(), constants: RefCell::default() }
    }

    /// `x` in `dtype`, `dims` times over; made once.
    pub(super) fn constant(&self, x: f32, dtype: Dtype, dims: &[i32]) -> Rc<Array> {
        let mut constants = self.constants.borrow_mut();
        let bits = x.to_bits();
        let same = |of: &&Constant| of.bits == bits && of.dtype == dtype && of.dims.as_slice() == dims;
        if let Some(held) = constants.iter().find(same) {
            return Rc::clone(&held.array);
        }
        let count = dims.iter().product::<i32>() as usize;
        let array = Rc::new(from_f32(&vec![x; count], dims, dtype));
        constants.push(Constant { bits, dtype, dims: dims.into(), array: Rc::clone(&array) });
        array
    }

    /// `a + b`.
    pub(super) fn add(&self, a: &Array, b: &Array) -> Result<Array> {
        node!(self, "add", mlx_add(a.as_ptr(), b.as_ptr()), ops::add(a, b))
    }

    /// `a ∘ b`.
    pub(super) fn multiply(&self, a: &Array, b: &Array) -> Result<Array> {
        node!(self, "multiply", mlx_multiply(a.as_ptr(), b.as_ptr()), ops::multiply(a, b))
    }

    /// `a · b`.
    pub(super) fn matmul(&self, a: &Array, b: &Array) -> Result<Array> {
        node!(self, "matmul", mlx_matmul(a.as_ptr(), b.as_ptr()), ops::matmul(a, b))
    }

    /// `alpha · a · b + c`.
    pub(super) fn addmm(&self, c: &Array, a: &Array, b: &Array, alpha: f32) -> Result<Array> {
        node!(
            self,
            "addmm",
            mlx_addmm(c.as_ptr(), a.as_ptr(), b.as_ptr(), alpha, 1.0),
            ops::addmm(c, a, b, alpha, 1.0)
        )
    }

    /// `1 / (1 + exp(-x))`.
    pub(super) fn sigmoid(&self, x: &Array) -> Result<Array> {
        node!(self, "sigmoid", mlx_sigmoid(x.as_ptr()), ops::sigmoid(x))
    }

    /// `1 / √x`.
    pub(super) fn rsqrt(&self, x: &Array) -> Result<Array> {
        node!(self, "rsqrt", mlx_rsqrt(x.as_ptr()), ops::rsqrt(x))
    }

    /// The softmax of the last dimension, summed in `f32`.
    pub(super) fn softmax(&self, x: &Array) -> Result<Array> {
        node!(self, "softmax", mlx_softmax_axis(x.as_ptr(), -1, true), ops::softmax_axis(x, -1, true))
    }

    /// `x` in `dtype`.
    pub(super) fn astype(&self, x: &Array, dtype: Dtype) -> Result<Array> {
        node!(self, "cast", mlx_astype(x.as_ptr(), dtype.into()), x.as_dtype(dtype))
    }

    /// `x` in other dimensions.
    pub(super) fn reshape(&self, x: &Array, dims: &[i32]) -> Result<Array> {
        node!(self, "reshape", mlx_reshape(x.as_ptr(), dims.as_ptr(), dims.len()), x.reshape(dims))
    }

    /// `x` with its dimensions in the order `axes`.
    pub(super) fn transpose(&self, x: &Array, axes: &[i32]) -> Result<Array> {
        node!(
            self,
            "transpose",
            mlx_transpose_axes(x.as_ptr(), axes.as_ptr(), axes.len()),
            x.transpose_axes(axes)
        )
    }

    /// Rows `indices` of `x`.
    pub(super) fn take(&self, x: &Array, indices: &Array) -> Result<Array> {
        node!(self, "take", mlx_take_axis(x.as_ptr(), indices.as_ptr(), 0), x.take_axis(indices, 0))
    }

    /// Columns `indices` of a matrix.
    pub(super) fn take_columns(&self, x: &Array, indices: &Array) -> Result<Array> {
        node!(self, "take", mlx_take_axis(x.as_ptr(), indices.as_ptr(), 1), x.take_axis(indices, 1))
    }

    /// `x · Wᵀ` of matrices `[.., N, K]` in one of MLX's formats or, not `transposed`, `x · W` of `[.., K, N]`.
    pub(super) fn quantized_matmul(&self, x: &Array, w: &QuantArrays, transposed: bool) -> Result<Array> {
        let (group, bits) = (some(w.group), some(w.bits));
        let (codes, scales, biases) = (w.codes.as_ptr(), w.scales.as_ptr(), handle(w.biases.as_deref()));
        node!(
            self,
            "quantized_matmul",
            mlx_quantized_matmul(x.as_ptr(), codes, scales, biases, transposed, group, bits, w.mode.as_ptr()),
            Err(refused(x, w))
        )
    }

    /// Rows of `x` `[.., 1, K]` times the matrices `[E, N, K]` that `experts` names, which are `sorted` or not.
    pub(super) fn gather_qmm(
        &self,
        x: &Array,
        w: &QuantArrays,
        experts: &Array,
        sorted: bool,
    ) -> Result<Array> {
        let (group, bits, mode) = (some(w.group), some(w.bits), w.mode.as_ptr());
        let (codes, scales, biases) = (w.codes.as_ptr(), w.scales.as_ptr(), handle(w.biases.as_deref()));
        let (x_, all, experts) = (x.as_ptr(), handle(None), experts.as_ptr());
        node!(
            self,
            "gather_qmm",
            mlx_gather_qmm(x_, codes, scales, biases, all, experts, true, group, bits, mode, sorted),
            Err(refused(x, w))
        )
    }

    /// The values of rows in one of MLX's formats, in `dtype` or, where they are affine, in the type of their scales.
    pub(super) fn dequantize(&self, w: &QuantArrays, dtype: Dtype) -> Result<Array> {
        let (group, bits) = (some(w.group), some(w.bits));
        let (codes, scales, biases) = (w.codes.as_ptr(), w.scales.as_ptr(), handle(w.biases.as_deref()));
        let wanted = mlx_sys::mlx_optional_dtype { value: dtype.into(), has_value: w.biases.is_none() };
        node!(
            self,
            "dequantize",
            mlx_dequantize(codes, scales, biases, group, bits, w.mode.as_ptr(), handle(None), wanted),
            Err(refused(&w.codes, w))
        )
    }

    /// The RMS norm of the last dimension.
    pub(super) fn rms_norm(&self, x: &Array, weight: &Array, eps: f32) -> Result<Array> {
        node!(
            self,
            "rms_norm",
            mlx_fast_rms_norm(x.as_ptr(), weight.as_ptr(), eps),
            fast::rms_norm(x, Some(weight), eps)
        )
    }

    /// The rotary embedding of `x` `[1, H, T, D]` from position `offset` on, by `periods` `[dims / 2]`.
    pub(super) fn rope(&self, x: &Array, dims: i32, offset: i32, periods: &Array) -> Result<Array> {
        let base = mlx_sys::mlx_optional_float { value: 0.0, has_value: false };
        node!(
            self,
            "rope",
            mlx_fast_rope(x.as_ptr(), dims, false, base, 1.0, offset, periods.as_ptr()),
            fast::rope(x, dims, false, None, 1.0, offset, Some(periods))
        )
    }

    /// `x[starts..stops]` in every dimension.
    pub(super) fn slice(&self, x: &Array, starts: &[i32], stops: &[i32]) -> Result<Array> {
        let dims = starts.len();
        debug_assert!(dims == x.ndim() && stops.len() == dims && dims <= ONES.len());
        let (starts_at, stops_at) = (starts.as_ptr(), stops.as_ptr());
        node!(
            self,
            "slice",
            mlx_slice(x.as_ptr(), starts_at, dims, stops_at, dims, ONES.as_ptr(), dims),
            Err(beyond(x, starts, stops))
        )
    }

    /// `x` with `update` in place of `x[starts..stops]`; in place where nothing else holds `x`.
    pub(super) fn slice_update(
        &self,
        x: &Array,
        update: &Array,
        starts: &[i32],
        stops: &[i32],
    ) -> Result<Array> {
        let dims = starts.len();
        debug_assert!(dims == x.ndim() && stops.len() == dims && dims <= ONES.len());
        let (to, from) = (x.as_ptr(), update.as_ptr());
        let (starts_at, stops_at) = (starts.as_ptr(), stops.as_ptr());
        node!(
            self,
            "slice_update",
            mlx_slice_update(to, from, starts_at, dims, stops_at, dims, ONES.as_ptr(), dims),
            Err(beyond(x, starts, stops))
        )
    }

    /// MLX's kernel of attention: `q` `[1, H, T, D]`, `k` and `v` `[1, KH, S, D]`, `mask` broadcast to `[1, H, T, S]`.
    pub(super) fn attention(
        &self,
        [q, k, v]: [&Array; 3],
        mask: Option<&Array>,
        scale: f32,
        sinks: Option<&Array>,
    ) -> Result<Array> {
        let none = mlx_sys::mlx_array { ctx: std::ptr::null_mut() };
        let (mode, given) = mask.map_or((c"", none), |mask| (c"array", mask.as_ptr()));
        let qkv = (q.as_ptr(), k.as_ptr(), v.as_ptr());
        node!(
            self,
            "attention",
            mlx_fast_scaled_dot_product_attention(
                qkv.0,
                qkv.1,
                qkv.2,
                scale,
                mode.as_ptr(),
                given,
                sinks.map_or(none, Array::as_ptr),
                false
            ),
            fast::scaled_dot_product_attention(
                q,
                k,
                v,
                scale,
                mask.map(fast::ScaledDotProductAttentionMask::Array),
                sinks
            )
        )
    }
}

fn some(value: i32) -> mlx_sys::mlx_optional_int {
    mlx_sys::mlx_optional_int { value, has_value: true }
}

/// An array that may be left out.
fn handle(array: Option<&Array>) -> mlx_sys::mlx_array {
    array.map_or(mlx_sys::mlx_array { ctx: std::ptr::null_mut() }, Array::as_ptr)
}

/// What a quantized op that MLX refuses was given.
fn refused(x: &Array, w: &QuantArrays) -> mlx_rs::error::Exception {
    let (of, mode) = (w.codes.shape(), w.mode.to_string_lossy());
    let what = format!("{:?} with words {of:?} of {mode} {} bits g{} is refused", x.shape(), w.bits, w.group);
    mlx_rs::error::Exception::custom(what)
}

/// What a slice that MLX refuses was.
fn beyond(x: &Array, starts: &[i32], stops: &[i32]) -> mlx_rs::error::Exception {
    mlx_rs::error::Exception::custom(format!("{starts:?}..{stops:?} of {:?} is refused", x.shape()))
}

/// Host values, rounded to nearest even in `dtype`.
pub(super) fn from_f32(values: &[f32], dims: &[i32], dtype: Dtype) -> Array {
    match dtype {
        Dtype::Float16 => {
            Array::from_slice(&values.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>(), dims)
        }
        Dtype::Bfloat16 => {
            Array::from_slice(&values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(), dims)
        }
        _ => Array::from_slice(values, dims),
    }
}
