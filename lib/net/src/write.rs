//! Wrappers whose writes are those of what they wrap.

/// `AsyncWrite` for a wrapper: everything goes to its field as it is, vectored writes too.
///
/// ```
/// use std::pin::Pin;
/// use tokio::io::{AsyncWrite, AsyncWriteExt as _};
///
/// struct Wrapper<IO>(IO);
/// culvert_net::write_through!([IO: AsyncWrite + Unpin] Wrapper<IO>, 0);
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let mut wrapper = Wrapper(Vec::new());
/// wrapper.write_all(b"as it is").await.unwrap();
/// assert_eq!(wrapper.0, b"as it is");
/// # });
/// ```
#[macro_export]
macro_rules! write_through {
    ([$($generics:tt)*] $wrapper:ty, $io:tt) => {
        impl<$($generics)*> ::tokio::io::AsyncWrite for $wrapper {
            fn poll_write(
                mut self: ::std::pin::Pin<&mut Self>,
                cx: &mut ::std::task::Context<'_>,
                data: &[u8],
            ) -> ::std::task::Poll<::std::io::Result<usize>> {
                ::std::pin::Pin::new(&mut self.$io).poll_write(cx, data)
            }

            fn poll_write_vectored(
                mut self: ::std::pin::Pin<&mut Self>,
                cx: &mut ::std::task::Context<'_>,
                slices: &[::std::io::IoSlice<'_>],
            ) -> ::std::task::Poll<::std::io::Result<usize>> {
                ::std::pin::Pin::new(&mut self.$io).poll_write_vectored(cx, slices)
            }

            fn is_write_vectored(&self) -> bool {
                self.$io.is_write_vectored()
            }

            fn poll_flush(
                mut self: ::std::pin::Pin<&mut Self>,
                cx: &mut ::std::task::Context<'_>,
            ) -> ::std::task::Poll<::std::io::Result<()>> {
                ::std::pin::Pin::new(&mut self.$io).poll_flush(cx)
            }

            fn poll_shutdown(
                mut self: ::std::pin::Pin<&mut Self>,
                cx: &mut ::std::task::Context<'_>,
            ) -> ::std::task::Poll<::std::io::Result<()>> {
                ::std::pin::Pin::new(&mut self.$io).poll_shutdown(cx)
            }
        }
    };
}
