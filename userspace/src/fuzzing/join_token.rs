use crate::identity::{JoinToken, token::ServerAddress};

/// What somebody pasted as a token: one that is taken means the same when it is written again.
pub fn join_token(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(token) = text.parse::<JoinToken>() {
        assert!(!token.servers.is_empty());
        assert_eq!(token.to_string().parse::<JoinToken>().as_ref(), Ok(&token));
    }
    if let Ok(address) = text.parse::<ServerAddress>() {
        assert_eq!(address.to_string().parse::<ServerAddress>(), Ok(address));
    }
}
