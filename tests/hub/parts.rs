//! A GGUF file in several, as llama.cpp's `gguf-split` makes them.

/// Where reading is in a file.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        self.at += count;
        &self.bytes[self.at - count..self.at]
    }

    fn number(&mut self, bytes: usize) -> u64 {
        self.take(bytes).iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn text(&mut self) -> &'a [u8] {
        let len = self.number(8);
        self.take(len as usize)
    }

    /// Passes over a value of a type.
    fn value(&mut self, kind: u64) {
        match kind {
            0 | 1 | 7 => self.at += 1,
            2 | 3 => self.at += 2,
            4..=6 => self.at += 4,
            8 => {
                self.text();
            }
            9 => {
                let (of, count) = (self.number(4), self.number(8));
                (0..count).for_each(|_| self.value(of));
            }
            _ => self.at += 8,
        }
    }
}

/// A tensor of a file.
struct Tensor<'a> {
    /// Name, dimensions and type.
    head: &'a [u8],
    data: &'a [u8],
}

const ALIGNMENT: usize = 32;

fn padded(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
}

/// The file `bytes` in so many parts, of which the first has all metadata, and each some tensors.
pub fn of(bytes: &[u8], parts: usize) -> Vec<Vec<u8>> {
    let mut reader = Reader { bytes, at: 8 };
    let (count, entries) = (reader.number(8) as usize, reader.number(8));
    let begin = reader.at;
    for _ in 0..entries {
        reader.text();
        let kind = reader.number(4);
        reader.value(kind);
    }
    let metadata = &bytes[begin..reader.at];
    let mut heads = Vec::new();
    for _ in 0..count {
        let begin = reader.at;
        reader.text();
        let dimensions = reader.number(4) as usize;
        reader.take(8 * dimensions + 4);
        heads.push((&bytes[begin..reader.at], reader.number(8) as usize));
    }
    let data = &bytes[reader.at.next_multiple_of(ALIGNMENT)..];
    let mut ends: Vec<usize> = heads.iter().map(|(_, at)| *at).chain([data.len()]).collect();
    ends.sort_unstable();
    let tensors: Vec<Tensor<'_>> = (heads.iter())
        .map(|&(head, at)| Tensor { head, data: &data[at..*ends.iter().find(|end| **end > at).unwrap()] })
        .collect();
    let each = count.div_ceil(parts);
    let part = |number: usize| {
        let of = &tensors[(number * each).min(count)..((number + 1) * each).min(count)];
        let mut part = b"GGUF\x03\0\0\0".to_vec();
        part.extend((of.len() as u64).to_le_bytes());
        part.extend((3_u64 + if number == 0 { entries } else { 0 }).to_le_bytes());
        if number == 0 {
            part.extend(metadata);
        }
        let mut entry = |name: &str, kind: u32, value: &[u8]| {
            part.extend((name.len() as u64).to_le_bytes());
            part.extend(name.as_bytes());
            part.extend(kind.to_le_bytes());
            part.extend(value);
        };
        entry("split.no", 2, &(number as u16).to_le_bytes());
        entry("split.count", 2, &(parts as u16).to_le_bytes());
        entry("split.tensors.count", 5, &(count as i32).to_le_bytes());
        let mut data: Vec<u8> = Vec::new();
        for tensor in of {
            part.extend(tensor.head);
            part.extend((data.len() as u64).to_le_bytes());
            data.extend(tensor.data);
            padded(&mut data);
        }
        padded(&mut part);
        part.extend(data);
        part
    };
    (0..parts).map(part).collect()
}
