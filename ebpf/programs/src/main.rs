//! Murmesh's kernel half: programs on sockets that refuse what the rules forbid, redirect connections to the agent and
//! let both ends see the addresses of the plain connection. One hook per file; this file lists them.
#![no_std]
#![no_main]

mod connect4;
mod connect6;
mod context;
mod getpeername4;
mod getpeername6;
mod getsockname4;
mod getsockname6;
mod intercept;
mod knowledge;
mod maps;
mod names;
mod sendmsg4;
mod sendmsg6;
mod sk_lookup;
mod sockops;
mod surroundings;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Some helpers (socket storage, ring buffers for logging) are reserved for programs under a licence that the
/// kernel knows to be compatible with its own.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
