//! Every op on its own: MLX and the CPU kernels against scalar references in `f64`, on the same inputs, under
//! `Policy::Deny`. Inputs are rounded to the backend's type of activations first, so that only the op's own rounding is
//! measured.

mod adapt;
mod attention;
mod bits;
mod experts;
mod heads;
mod kv;
mod linear;
mod norm;
mod pointwise;
mod quantized;
mod recurrent;
mod rig;
mod rope;
mod rows;
mod shapes;
