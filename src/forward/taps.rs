//! The taps of a depthwise convolution: how many, and their weights.

use super::loader::Loader;
use crate::alloc;
use crate::error::Result;
use crate::json::Fields;
use crate::tensor::Weight;

/// What taps in another order are called where there is no room for them.
const WHAT: &str = "the values of a weight";

/// The taps of a convolution, which the field `name` says.
pub(super) fn taps(fields: &Fields<'_>, name: &'static str) -> Result<usize> {
    let kernel = fields.size_or(name, Some(4), 1 << 16)?;
    if !(2..=64).contains(&kernel) {
        return Err(fields.error(name, kernel, "from 2 to 64"));
    }
    Ok(kernel)
}

/// The taps of the convolutions `modules`, side by side, `[taps, channels]`: files have those of a channel side by side.
pub(super) fn turned_taps(
    loader: &Loader<'_>,
    modules: &[String],
    [taps, channels]: [usize; 2],
) -> Result<Weight> {
    let mut values = Vec::new();
    for module in modules {
        let own = loader.vector(module)?.widened()?;
        alloc::reserve(&mut values, own.len(), WHAT)?;
        values.extend(own);
    }
    let mut turned = alloc::zeroed(values.len(), WHAT)?;
    for (channel, of) in values.chunks_exact(taps).enumerate() {
        of.iter().enumerate().for_each(|(tap, &x)| turned[tap * channels + channel] = x);
    }
    Ok(Weight::of_values("conv1d", &[taps, channels], turned))
}
