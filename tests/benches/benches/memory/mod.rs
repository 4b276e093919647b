//! Copying, filling and comparing memory in as many instructions on every machine.
//!
//! The C library has several ways and chooses one by what the processor can do, in each version in another way. Copies
//! must count, as one too many is what is to be found. So what is linked with this copies and fills by this: eight
//! octets an instruction, which is near what the C library's cost. Callgrind counts each repetition.

#![cfg(target_arch = "x86_64")]

use std::arch::asm;
use std::ffi::{c_int, c_void};

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut c_void, from: *const c_void, len: usize) -> *mut c_void {
    // SAFETY: The caller promises `len` octets at both places; the direction flag is clear, as the ABI has it.
    unsafe {
        asm!(
            "rep movsq",
            "mov rcx, {rest}",
            "rep movsb",
            rest = in(reg) len % 8,
            inout("rcx") len / 8 => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags),
        );
    }
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut c_void, from: *const c_void, len: usize) -> *mut c_void {
    if to.addr().wrapping_sub(from.addr()) >= len {
        // SAFETY: The caller promises `len` octets at both places, and none is written before it is read.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: The caller promises `len` octets at both places. They are copied from the last to the first, and the
    // direction flag is clear again in the end, as the ABI has it.
    unsafe {
        asm!(
            "std",
            "rep movsb",
            "mov rcx, {words}",
            "sub rdi, 7",
            "sub rsi, 7",
            "rep movsq",
            "cld",
            words = in(reg) len / 8,
            inout("rcx") len % 8 => _,
            inout("rdi") to.wrapping_byte_add(len).wrapping_byte_sub(1) => _,
            inout("rsi") from.wrapping_byte_add(len).wrapping_byte_sub(1) => _,
            options(nostack),
        );
    }
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut c_void, octet: c_int, len: usize) -> *mut c_void {
    // SAFETY: The caller promises `len` octets; the direction flag is clear, as the ABI has it.
    unsafe {
        asm!(
            "rep stosq",
            "mov rcx, {rest}",
            "rep stosb",
            rest = in(reg) len % 8,
            inout("rcx") len / 8 => _,
            inout("rdi") to => _,
            in("rax") u64::from(octet as u8) * 0x0101_0101_0101_0101,
            options(nostack, preserves_flags),
        );
    }
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const c_void, b: *const c_void, len: usize) -> c_int {
    let order: c_int;
    // SAFETY: The caller promises `len` octets at both places; the direction flag is clear, as the ABI has it.
    unsafe {
        asm!(
            // Equal, for when there is nothing to compare.
            "xor eax, eax",
            "repe cmpsb",
            "seta al",
            "sbb eax, 0",
            out("eax") order,
            inout("rcx") len => _,
            inout("rsi") a => _,
            inout("rdi") b => _,
            options(nostack, readonly),
        );
    }
    order
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const c_void, b: *const c_void, len: usize) -> c_int {
    // SAFETY: The caller promises `len` octets at both places.
    unsafe { memcmp(a, b, len) }
}
