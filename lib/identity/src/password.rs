//! What a cookie password must be.

/// Shorter ones are refused, in bytes.
pub const PASSWORD_BYTES_MIN: usize = 32;
/// Fewer different bytes are refused: 32 random hex digits have about 14.
const DIFFERENT_BYTES_MIN: usize = 8;
/// A text that is one shorter text over and over is as weak as that.
const PERIOD_BYTES_MAX: usize = 16;

/// Why a password does not seal cookies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeakPassword {
    /// Too short.
    #[error("has under {PASSWORD_BYTES_MIN} bytes; make one with: openssl rand -base64 48")]
    Short,
    /// Too few different characters, or a short text repeated.
    #[error("is too regular to be random; make one with: openssl rand -base64 48")]
    Regular,
}

/// Whether `password` may seal cookies.
///
/// # Errors
/// [`WeakPassword`].
pub fn check_password(password: &str) -> Result<(), WeakPassword> {
    let bytes = password.as_bytes();
    if bytes.len() < PASSWORD_BYTES_MIN {
        return Err(WeakPassword::Short);
    }
    let mut seen = [false; 256];
    for byte in bytes {
        seen[usize::from(*byte)] = true;
    }
    let different = seen.iter().filter(|seen| **seen).count();
    let repeats = |period: usize| bytes.iter().skip(period).zip(bytes).all(|(a, b)| a == b);
    let is_run = bytes.windows(2).all(|pair| pair[0].abs_diff(pair[1]) <= 1);
    if different < DIFFERENT_BYTES_MIN || is_run || (1..=PERIOD_BYTES_MAX).any(repeats) {
        return Err(WeakPassword::Regular);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_passwords_are_refused() {
        for (password, verdict) in [
            ("", Err(WeakPassword::Short)),
            ("Zq3v8xW1pL0sT7yB9nK4mR2cV6hJ5gD", Err(WeakPassword::Short)),
            (&"a".repeat(64), Err(WeakPassword::Regular)),
            (&"changeme".repeat(8), Err(WeakPassword::Regular)),
            (&"0123456789abcdef".repeat(4), Err(WeakPassword::Regular)),
            (
                "0123210123210123210123210123210123210",
                Err(WeakPassword::Regular),
            ),
            (
                " !\"#$%&'()*+,-./0123456789:;<=>?@ABC",
                Err(WeakPassword::Regular),
            ),
            ("Zq3v8xW1pL0sT7yB9nK4mR2cV6hJ5gDe", Ok(())),
            ("4f6b1d0c9e8a7b3c2d5e6f708192a3b4", Ok(())),
        ] {
            assert_eq!(check_password(password), verdict, "{password:?}");
        }
    }
}
