//! The GPU weight cache: the address and length of a weight's bytes → its array.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::hash_map::{self, HashMap};
use std::ffi::c_void;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use mlx_rs::{Array, Dtype};
use smallvec::SmallVec;

use super::{array, failed};
use crate::error::Result;
use crate::quant::{Plane, QuantWeight};
use crate::tensor::Weight;

/// What identifies a weight: the address and length of its bytes, or what a matrix that is made names, which its owner keeps
/// in place.
type Key = (usize, usize);

/// A form of a weight that an op wants: a lazy view, a small array, or the parts of a repacked matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    /// In its own type and shape.
    Own,
    /// `[K, N]` of a weight `[N, K]`.
    Transposed,
    /// A norm's weight plus the number with these bits, in `f32`, in so many dimensions.
    Shifted(u32, usize),
    /// A plane of a matrix that its file does not hold so.
    Made(usize),
    /// The order of a matrix's columns.
    Order,
}

/// A weight on MLX, and what it was made of, so that no other weight can come to have its key.
struct Entry {
    /// That of the file first, unless the matrix's planes are made.
    forms: Vec<(Form, Rc<Array>)>,
    /// Bytes of the first forms on MLX; the others are views, or small.
    bytes: usize,
    _owner: Box<dyn Any>,
}

type Entries = HashMap<Key, Entry, BuildHasherDefault<AddressHasher>>;

impl Entry {
    /// A form, which `make` makes of the first one the first time.
    fn form(&mut self, form: Form, make: impl FnOnce(&Array) -> Result<Array>) -> Result<Rc<Array>> {
        if let Some((_, array)) = self.forms.iter().find(|(of, _)| *of == form) {
            return Ok(Rc::clone(array));
        }
        let array = Rc::new(make(&self.forms[0].1)?);
        self.forms.push((form, Rc::clone(&array)));
        Ok(array)
    }
}

/// Uploads each weight once. Only a [`Weight`] or a [`Plane`] of a matrix is a key: no activation can come to be in here.
#[derive(Default)]
pub struct WeightCache {
    entries: RefCell<Entries>,
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
        let array = || upload(bytes, weight.shape(), array::dtype(weight.dtype()));
        if bytes.is_empty() {
            // No bytes, so no address of their own: another weight without any may have it, too.
            return make(&array()?).map(Rc::new);
        }
        let mut entries = self.entries.borrow_mut();
        let load = || Ok(vec![(Form::Own, array()?)]);
        self.entry(&mut entries, key(bytes), || Box::new(weight.owner()), load)?.form(form, make)
    }

    /// The array of a plane, `shape` elements of `dtype`.
    pub(super) fn plane(&self, plane: &Plane, shape: &[usize], dtype: Dtype) -> Result<Rc<Array>> {
        let mut entries = self.entries.borrow_mut();
        let load = || Ok(vec![(Form::Own, upload(plane.bytes(), shape, dtype)?)]);
        let entry = self.entry(&mut entries, key(plane.bytes()), || Box::new(plane.owner()), load)?;
        Ok(Rc::clone(&entry.forms[0].1))
    }

    /// The planes that `make` makes of a matrix, once.
    pub(super) fn made(
        &self,
        weight: &QuantWeight,
        make: impl FnOnce() -> Result<Vec<Array>>,
    ) -> Result<SmallVec<[Rc<Array>; 3]>> {
        let mut entries = self.entries.borrow_mut();
        let load = || Ok((0..).map(Form::Made).zip(make()?).collect());
        let entry = self.entry(&mut entries, weight.key(), || Box::new(weight.clone()), load)?;
        let planes = entry.forms.iter().filter(|(form, _)| matches!(form, Form::Made(_)));
        Ok(planes.map(|(_, array)| Rc::clone(array)).collect())
    }

    /// What `make` makes of the order of a matrix that is held already.
    pub(super) fn order(
        &self,
        weight: &QuantWeight,
        make: impl FnOnce() -> Result<Array>,
    ) -> Result<Rc<Array>> {
        match self.entries.borrow_mut().get_mut(&weight.key()) {
            Some(entry) => entry.form(Form::Order, |_| make()),
            None => make().map(Rc::new),
        }
    }

    /// The entry of a key, which `owner` keeps in place; `load` makes its first forms where there is none.
    fn entry<'a>(
        &self,
        entries: &'a mut Entries,
        key: Key,
        owner: impl FnOnce() -> Box<dyn Any>,
        load: impl FnOnce() -> Result<Vec<(Form, Array)>>,
    ) -> Result<&'a mut Entry> {
        match entries.entry(key) {
            hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            hash_map::Entry::Vacant(entry) => {
                let arrays = load()?;
                let bytes = arrays.iter().map(|(_, array)| array.nbytes()).sum();
                let forms = arrays.into_iter().map(|(form, array)| (form, Rc::new(array))).collect();
                self.uploads.set(self.uploads.get() + 1);
                Ok(entry.insert(Entry { forms, bytes, _owner: owner() }))
            }
        }
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
        self.entries.borrow().values().map(|entry| entry.bytes).sum()
    }

    /// Uploads since the cache was made or cleared.
    pub fn uploads(&self) -> u64 {
        self.uploads.get()
    }

    /// Whether the weight at this address is held: for tests.
    pub fn holds(&self, bytes: &[u8]) -> bool {
        self.entries.borrow().contains_key(&key(bytes))
    }

    /// Forgets every weight.
    pub fn clear(&self) {
        self.entries.borrow_mut().clear();
        self.uploads.set(0);
    }
}

fn key(bytes: &[u8]) -> Key {
    (bytes.as_ptr() as usize, bytes.len())
}

/// Copies the bytes of a weight or a plane into an array.
///
/// # Panics
/// Where there are not as many bytes as `shape` and `dtype` want.
pub(super) fn upload(bytes: &[u8], shape: &[usize], dtype: Dtype) -> Result<Array> {
    let dims = array::dims(shape)?;
    let size = match dtype {
        Dtype::Uint8 => 1,
        Dtype::Float16 | Dtype::Bfloat16 => 2,
        Dtype::Float32 | Dtype::Uint32 => 4,
        other => panic!("no weight is of {other:?}"),
    };
    assert_eq!(
        bytes.len(),
        shape.iter().product::<usize>() * size,
        "bytes of {shape:?} elements of {dtype:?}"
    );
    // SAFETY: there are as many bytes as shape and type want, little-endian, which is what MLX reads on the machines that
    // it runs on; MLX copies them before the call returns, and reads bytes, so alignment does not matter.
    Ok(unsafe { Array::from_raw_data(bytes.as_ptr().cast::<c_void>(), &dims, dtype) })
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
