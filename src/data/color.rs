//! Pillow's 8-bit colour operations, byte for byte.
