//! x
mod key;
mod store;
mod value;
pub use key::*;
pub use store::*;
pub use value::*;
