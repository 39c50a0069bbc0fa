//! The library `bit` of scripts: operations on 32 bits, after Lua BitOp.

use mlua::{Lua, Table, Variadic};

/// An operation by its name.
type Named<F> = (&'static str, F);
type One = fn(i32) -> i32;
type Two = fn(i32, i32) -> i32;
type Shift = fn(i32, u32) -> i32;

/// The low 32 bits of a number, rounded.
fn bits(number: f64) -> i32 {
    // NaN and infinities have none, and become 0.
    number.round_ties_even().rem_euclid(4_294_967_296.0) as u32 as i32
}

fn number(bits: i32) -> f64 {
    f64::from(bits)
}

/// The functions by their names.
pub(super) fn library(lua: &Lua) -> mlua::Result<Table> {
    let library = lua.create_table()?;
    let one: [Named<One>; 3] = [("tobit", |bits| bits), ("bnot", |bits| !bits), ("bswap", i32::swap_bytes)];
    for (name, operation) in one {
        library.raw_set(name, lua.create_function(move |_, of: f64| Ok(number(operation(bits(of)))))?)?;
    }
    let many: [Named<Two>; 3] = [("band", |a, b| a & b), ("bor", |a, b| a | b), ("bxor", |a, b| a ^ b)];
    for (name, operation) in many {
        let combine = move |_: &Lua, (first, rest): (f64, Variadic<f64>)| {
            Ok(number(rest.iter().fold(bits(first), |all, next| operation(all, bits(*next)))))
        };
        library.raw_set(name, lua.create_function(combine)?)?;
    }
    // Only the low five bits of a distance count.
    let shifts: [Named<Shift>; 5] = [
        ("lshift", |bits, by| bits << by),
        ("rshift", |bits, by| ((bits as u32) >> by) as i32),
        ("arshift", |bits, by| bits >> by),
        ("rol", i32::rotate_left),
        ("ror", i32::rotate_right),
    ];
    for (name, operation) in shifts {
        let shift = move |_: &Lua, (of, by): (f64, f64)| Ok(number(operation(bits(of), (bits(by) & 31) as u32)));
        library.raw_set(name, lua.create_function(shift)?)?;
    }
    library.raw_set("tohex", lua.create_function(|_, (of, digits): (f64, Option<f64>)| Ok(hex(bits(of), digits)))?)?;
    Ok(library)
}

/// The last digits of the hexadecimal form; a negative number of digits asks for capitals.
fn hex(of: i32, digits: Option<f64>) -> String {
    let digits = digits.map_or(8, bits);
    let kept = digits.unsigned_abs().min(8) as usize;
    let text = if digits < 0 { format!("{of:08X}") } else { format!("{of:08x}") };
    text[8 - kept..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_wrap_to_32_bits() {
        for (number, wrapped) in [
            (0.0, 0),
            (4_294_967_295.0, -1),
            (4_294_967_296.0, 0),
            (-1.0, -1),
            (2_147_483_648.0, i32::MIN),
            (1.5, 2),
            (2.5, 2),
            (f64::NAN, 0),
            (f64::INFINITY, 0),
        ] {
            assert_eq!(bits(number), wrapped, "{number}");
        }
        assert_eq!(
            (hex(-1, None), hex(255, Some(4.0)), hex(255, Some(-2.0))),
            ("ffffffff".into(), "00ff".into(), "FF".into())
        );
    }
}
