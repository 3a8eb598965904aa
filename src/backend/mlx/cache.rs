//! The GPU weight cache: the address and length of a weight's bytes → its array.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use mlx_rs::Array;
use parking_lot::Mutex;

use super::{array, failed};
use crate::error::Result;
use crate::tensor::{Bytes, Weight};

/// What identifies a weight: the address and length of its bytes, which its owner keeps in place.
type Key = (usize, usize);

/// A weight on MLX, and the host bytes that it was made of, so that no other weight can come to have their address.
struct Entry {
    array: Array,
    /// The array as its uses want it (transposed, offset), by use; lazy views or small arrays.
    derived: HashMap<&'static str, Array>,
    _owner: Arc<dyn Bytes>,
}

/// Uploads each weight once. Only a [`Weight`] is a key: no activation can come to be in here.
#[derive(Default)]
pub struct WeightCache {
    entries: Mutex<HashMap<Key, Entry>>,
    uploads: Mutex<u64>,
}

impl WeightCache {
    /// The array of `weight`, in its own type and shape.
    pub(super) fn get(&self, weight: &Weight) -> Result<Array> {
        self.derived(weight, "", |array| Ok(array.clone()))
    }

    /// What `derive` makes of the array of `weight`, made once for each `name`.
    pub(super) fn derived(
        &self,
        weight: &Weight,
        name: &'static str,
        derive: impl FnOnce(&Array) -> mlx_rs::error::Result<Array>,
    ) -> Result<Array> {
        let bytes = weight.bytes();
        let mut entries = self.entries.lock();
        let entry = match entries.entry((bytes.as_ptr() as usize, bytes.len())) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let array = upload(weight)?;
                *self.uploads.lock() += 1;
                entry.insert(Entry { array, derived: HashMap::new(), _owner: weight.owner() })
            }
        };
        if name.is_empty() {
            return Ok(entry.array.clone());
        }
        if let Some(array) = entry.derived.get(name) {
            return Ok(array.clone());
        }
        let array = derive(&entry.array).map_err(|error| failed("weight", &error))?;
        entry.derived.insert(name, array.clone());
        Ok(array)
    }

    /// Weights held.
    pub fn len(&self) -> usize {
        self.entries.lock().len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the weights held.
    pub fn bytes(&self) -> usize {
        self.entries.lock().keys().map(|(_, len)| len).sum()
    }

    /// Uploads since the cache was made.
    pub fn uploads(&self) -> u64 {
        *self.uploads.lock()
    }

    /// Whether the weight at this address is held: for tests.
    pub fn holds(&self, bytes: &[u8]) -> bool {
        self.entries.lock().contains_key(&(bytes.as_ptr() as usize, bytes.len()))
    }

    /// Forgets every weight.
    pub fn clear(&self) {
        self.entries.lock().clear();
    }
}

/// Copies a weight's bytes into an array of its own type.
fn upload(weight: &Weight) -> Result<Array> {
    let shape = array::shape(weight.shape())?;
    let bytes = weight.bytes();
    // SAFETY: `Weight` holds as many bytes as its shape and type want, little-endian, which is what MLX reads on the
    // machines that it runs on; MLX copies them before the call returns, and reads bytes, so alignment does not matter.
    let array = unsafe {
        Array::from_raw_data(bytes.as_ptr().cast::<c_void>(), &shape, array::dtype(weight.dtype()))
    };
    Ok(array)
}
