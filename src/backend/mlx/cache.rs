//! The GPU weight cache: the address and length of a weight's bytes → its array.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::c_void;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use std::sync::Arc;

use mlx_rs::Array;

use super::{array, failed};
use crate::error::Result;
use crate::tensor::{Bytes, Weight};

/// What identifies a weight: the address and length of its bytes, which its owner keeps in place.
type Key = (usize, usize);

/// A form of a weight that an op wants: a lazy view, or a small array.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// In its own type and shape.
    Own,
    /// `[K, N]` of a weight `[N, K]`.
    Transposed,
    /// A norm's weight plus the number with these bits, in `f32`, in so many dimensions.
    Shifted(u32, usize),
}

/// A weight on MLX, and the host bytes that it was made of, so that no other weight can come to have their address.
struct Entry {
    forms: Vec<(Form, Rc<Array>)>,
    _owner: Arc<dyn Bytes>,
}

/// Uploads each weight once. Only a [`Weight`] is a key: no activation can come to be in here.
#[derive(Default)]
pub struct WeightCache {
    entries: RefCell<HashMap<Key, Entry, BuildHasherDefault<AddressHasher>>>,
    uploads: Cell<u64>,
}

impl WeightCache {
    /// The array of `weight`, in its own type and shape.
    pub(super) fn get(&self, weight: &Weight) -> Result<Rc<Array>> {
        self.form(weight, Form::Own, |array| Ok(array.clone()))
    }

    /// The array of `weight` `[N, K]` as `[K, N]`.
    pub(super) fn transposed(&self, weight: &Weight) -> Result<Rc<Array>> {
        self.form(weight, Form::Transposed, |array| array.transpose().map_err(|e| failed("weight", &e)))
    }

    /// `weight + offset` in `f32`, in the dimensions `dims`, whose number is part of what identifies it.
    pub(super) fn shifted(&self, weight: &Weight, offset: f32, dims: &[i32]) -> Result<Rc<Array>> {
        self.form(weight, Form::Shifted(offset.to_bits(), dims.len()), |_| {
            let values: Vec<f32> = weight.to_f32().iter().map(|w| w + offset).collect();
            Ok(Array::from_slice(&values, dims))
        })
    }

    /// A form of `weight`, which `make` makes of its array the first time.
    fn form(
        &self,
        weight: &Weight,
        form: Form,
        make: impl FnOnce(&Array) -> Result<Array>,
    ) -> Result<Rc<Array>> {
        let bytes = weight.bytes();
        if bytes.is_empty() {
            // No bytes, so no address of their own: another weight without any may have it, too.
            return make(&upload(weight)?).map(Rc::new);
        }
        let mut entries = self.entries.borrow_mut();
        let entry = match entries.entry((bytes.as_ptr() as usize, bytes.len())) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let array = Rc::new(upload(weight)?);
                self.uploads.set(self.uploads.get() + 1);
                entry.insert(Entry { forms: vec![(Form::Own, array)], _owner: weight.owner() })
            }
        };
        if let Some((_, array)) = entry.forms.iter().find(|(of, _)| *of == form) {
            return Ok(Rc::clone(array));
        }
        let array = Rc::new(make(&entry.forms[0].1)?);
        entry.forms.push((form, Rc::clone(&array)));
        Ok(array)
    }

    /// Weights held.
    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the weights held.
    pub fn bytes(&self) -> usize {
        self.entries.borrow().keys().map(|(_, len)| len).sum()
    }

    /// Uploads since the cache was made.
    pub fn uploads(&self) -> u64 {
        self.uploads.get()
    }

    /// Whether the weight at this address is held: for tests.
    pub fn holds(&self, bytes: &[u8]) -> bool {
        self.entries.borrow().contains_key(&(bytes.as_ptr() as usize, bytes.len()))
    }

    /// Forgets every weight.
    pub fn clear(&self) {
        self.entries.borrow_mut().clear();
    }
}

/// Copies a weight's bytes into an array of its own type.
fn upload(weight: &Weight) -> Result<Array> {
    let dims = array::dims(weight.shape())?;
    let bytes = weight.bytes();
    // SAFETY: `Weight` holds as many bytes as its shape and type want, little-endian, which is what MLX reads on the
    // machines that it runs on; MLX copies them before the call returns, and reads bytes, so alignment does not matter.
    let array =
        unsafe { Array::from_raw_data(bytes.as_ptr().cast::<c_void>(), &dims, array::dtype(weight.dtype())) };
    Ok(array)
}

/// Mixes the two words of a key: nobody chooses addresses to make them collide, and a step looks up every weight.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_usize(usize::from(byte)));
    }

    fn write_usize(&mut self, word: usize) {
        // 2⁶⁴ / φ, odd: Knuth's multiplicative hash.
        self.0 = (self.0.rotate_left(32) ^ word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        // The upper bits of a product depend on all of the word, the lower ones on its own lower ones alone.
        self.0 ^ (self.0 >> 32)
    }
}
