#!/usr/bin/env bash
# Install FFmpeg, whose shared libraries torchcodec loads, if it is missing and that is possible without a question.
# Always succeeds: without FFmpeg, PyAV decodes, with the libraries in its own wheel.
#
#   bash scripts/ensure_ffmpeg.sh

has_ffmpeg() {
    command -v ffmpeg >/dev/null || PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -q 'libavcodec\.so'
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

install_ffmpeg() {
    if command -v apt-get >/dev/null; then
        as_root apt-get update -q
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ffmpeg
    elif command -v brew >/dev/null; then
        brew install ffmpeg
    fi
}

if ! has_ffmpeg; then
    install_ffmpeg >/dev/null 2>&1 </dev/null
    has_ffmpeg || echo "FFmpeg is missing and could not be installed: PyAV decodes instead (slower)."
fi
