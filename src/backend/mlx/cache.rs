//! The GPU weight cache: the address and length of a weight's bytes → its array.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::c_void;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use mlx_rs::{Array, Dtype};
use smallvec::SmallVec;

use super::{dims, failed};
use crate::error::{Error, Result};
use crate::quant::{Plane, QuantWeight, Stack};
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

/// The place of a weight's arrays on MLX, shared by all who prepared it. It is filled when an op first asks, and emptied when
/// MLX is given up. What the weight was made of stays as long as its place does, so that no other weight can come to have its key.
pub(super) struct Slot {
    /// That of the file first, unless the matrix's planes are made.
    forms: RefCell<Forms>,
    /// Bytes of the first forms on MLX; the others are views, or small.
    bytes: Cell<usize>,
    uploads: Rc<Cell<u64>>,
    _owner: Box<dyn Any>,
}

type Forms = SmallVec<[(Form, Rc<Array>); 3]>;

impl Slot {
    fn new(uploads: &Rc<Cell<u64>>, owner: Box<dyn Any>) -> Rc<Self> {
        Rc::new(Self {
            forms: RefCell::default(),
            bytes: Cell::new(0),
            uploads: Rc::clone(uploads),
            _owner: owner,
        })
    }

    /// Uploads what `load` makes, where that was not done before: the first forms.
    fn fill(&self, load: impl FnOnce() -> Result<Vec<(Form, Array)>>) -> Result<()> {
        if !self.forms.borrow().is_empty() {
            return Ok(());
        }
        let arrays = load()?;
        self.bytes.set(arrays.iter().map(|(_, array)| array.nbytes()).sum());
        self.uploads.set(self.uploads.get() + 1);
        self.forms.borrow_mut().extend(arrays.into_iter().map(|(form, array)| (form, Rc::new(array))));
        Ok(())
    }

    /// A form, which `make` makes of the first one the first time; the slot is filled.
    fn form(&self, form: Form, make: impl FnOnce(&Array) -> Result<Array>) -> Result<Rc<Array>> {
        let mut forms = self.forms.borrow_mut();
        if let Some((_, array)) = forms.iter().find(|(of, _)| *of == form) {
            return Ok(Rc::clone(array));
        }
        let Some((_, first)) = forms.first() else {
            return Err(Error::Op { op: "weight", backend: "mlx", reason: "it was not uploaded".into() });
        };
        let array = Rc::new(make(first)?);
        forms.push((form, Rc::clone(&array)));
        Ok(array)
    }

    fn is_filled(&self) -> bool {
        !self.forms.borrow().is_empty()
    }

    fn empty(&self) {
        self.forms.borrow_mut().clear();
        self.bytes.set(0);
    }

    /// The array of `weight`, whose slot this is, in its own type and shape.
    pub(super) fn own(&self, weight: &Weight) -> Result<Rc<Array>> {
        self.of(weight, Form::Own, |array| Ok(array.clone()))
    }

    /// The array of `weight` `[N, K]` as `[K, N]`.
    pub(super) fn transposed(&self, weight: &Weight) -> Result<Rc<Array>> {
        self.of(weight, Form::Transposed, |array| array.transpose().map_err(|e| failed("weight", &e)))
    }

    /// `weight + offset` in `f32`, in the dimensions `dims`, whose number is part of what identifies it.
    pub(super) fn shifted(&self, weight: &Weight, offset: f32, dims: &[i32]) -> Result<Rc<Array>> {
        self.of(weight, Form::Shifted(offset.to_bits(), dims.len()), |_| {
            let mut values = weight.widened()?;
            values.iter_mut().for_each(|w| *w += offset);
            Ok(Array::from_slice(&values, dims))
        })
    }

    fn of(
        &self,
        weight: &Weight,
        form: Form,
        make: impl FnOnce(&Array) -> Result<Array>,
    ) -> Result<Rc<Array>> {
        self.fill(|| {
            let array = upload(weight.bytes(), weight.shape(), dims::dtype(weight.dtype()))?;
            Ok(vec![(Form::Own, array)])
        })?;
        self.form(form, make)
    }

    /// The array of `plane`, whose slot this is, `shape` elements of `dtype`.
    pub(super) fn plane(&self, plane: &Plane, shape: &[usize], dtype: Dtype) -> Result<Rc<Array>> {
        self.fill(|| Ok(vec![(Form::Own, upload(plane.bytes(), shape, dtype)?)]))?;
        self.form(Form::Own, |array| Ok(array.clone()))
    }

    /// The planes that `make` makes of the matrix whose slot this is, once.
    pub(super) fn made(&self, make: impl FnOnce() -> Result<Vec<Array>>) -> Result<SmallVec<[Rc<Array>; 3]>> {
        self.fill(|| Ok((0..).map(Form::Made).zip(make()?).collect()))?;
        let forms = self.forms.borrow();
        let planes = forms.iter().filter(|(form, _)| matches!(form, Form::Made(_)));
        Ok(planes.map(|(_, array)| Rc::clone(array)).collect())
    }

    /// What `make` makes of the order of the matrix whose slot this is; it is filled.
    pub(super) fn order(&self, make: impl FnOnce() -> Result<Array>) -> Result<Rc<Array>> {
        self.form(Form::Order, |_| make())
    }
}

type Slots = HashMap<Key, Rc<Slot>, BuildHasherDefault<AddressHasher>>;

/// Uploads each weight once. Only a [`Weight`], a [`Plane`] of a matrix or a matrix that is made is a key: no activation can come
/// to be in here. Addresses are looked up where a weight is prepared, and not by ops.
#[derive(Default)]
pub struct WeightCache {
    slots: RefCell<Slots>,
    uploads: Rc<Cell<u64>>,
}

impl WeightCache {
    /// The slot of a weight.
    pub(super) fn weight(&self, weight: &Weight) -> Rc<Slot> {
        self.slot(weight.bytes().is_empty(), key(weight.bytes()), Box::new(weight.owner()))
    }

    /// The slot of a plane of a matrix.
    pub(super) fn plane(&self, plane: &Plane) -> Rc<Slot> {
        self.slot(plane.bytes().is_empty(), key(plane.bytes()), Box::new(plane.owner()))
    }

    /// The slot of a matrix whose planes its file does not hold so.
    pub(super) fn made(&self, weight: &QuantWeight) -> Rc<Slot> {
        self.slot(!weight.is_made() && weight.len_bytes() == 0, weight.key(), Box::new(weight.clone()))
    }

    /// The slot of a layer's experts.
    pub(super) fn stack(&self, stack: &Stack) -> Rc<Slot> {
        self.slot(stack.shape().contains(&0), stack.key(), Box::new(stack.clone()))
    }

    /// The slot of a key, which `owner` keeps in place.
    fn slot(&self, is_empty: bool, key: Key, owner: Box<dyn Any>) -> Rc<Slot> {
        if is_empty {
            // No bytes, so no address of their own: another weight without any may have it, too.
            return Slot::new(&self.uploads, owner);
        }
        let mut slots = self.slots.borrow_mut();
        Rc::clone(slots.entry(key).or_insert_with(|| Slot::new(&self.uploads, owner)))
    }

    /// Weights held.
    pub fn len(&self) -> usize {
        self.slots.borrow().values().filter(|slot| slot.is_filled()).count()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the weights held.
    pub fn bytes(&self) -> usize {
        self.slots.borrow().values().map(|slot| slot.bytes.get()).sum()
    }

    /// Uploads since the cache was made or cleared.
    pub fn uploads(&self) -> u64 {
        self.uploads.get()
    }

    /// Whether the weight at this address is held: for tests.
    pub fn holds(&self, bytes: &[u8]) -> bool {
        self.slots.borrow().get(&key(bytes)).is_some_and(|slot| slot.is_filled())
    }

    /// Forgets the weights that nobody has prepared any more, with their arrays.
    pub fn clear_unused(&self) {
        self.slots.borrow_mut().retain(|_, slot| Rc::strong_count(slot) > 1);
    }

    /// Frees every array, and forgets the weights that nobody has prepared any more.
    pub fn clear(&self) {
        let mut slots = self.slots.borrow_mut();
        slots.values().for_each(|slot| slot.empty());
        slots.retain(|_, slot| Rc::strong_count(slot) > 1);
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
    let dims = dims::of(shape)?;
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

/// Mixes the two words of a key: nobody chooses addresses to make them collide.
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
