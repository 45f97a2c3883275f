#!/bin/sh
# Makes the clips in this folder and, as strips of frames side by side, what ffmpeg decodes them to.
# Chroma is repeated (neighbor), not interpolated, as ffmpeg does by default where nothing is scaled.
# Then make.py makes the reference values of selection and resizing.
set -eu
cd "$(dirname "$0")"
EXACT="accurate_rnd+full_chroma_int+full_chroma_inp+bitexact+neighbor"
FRAMES=12
SOURCE="testsrc2=size=48x32:rate=24:duration=0.5"
TAG709="-colorspace bt709 -color_primaries bt709 -color_trc bt709 -color_range tv"
TAG601="-colorspace smpte170m -color_primaries smpte170m -color_trc smpte170m -color_range tv"
X264="-c:v libx264 -preset slow -crf 20"

encode() { ffmpeg -v error -y -fflags +bitexact -flags:v +bitexact -threads 1 "$@"; }
from_source() { filter="$1"; shift; encode -f lavfi -i "$SOURCE" -vf "$filter" "$@"; }
# decode CLIP STRIP [FRAMES [FILTER BEHIND RGB]]
decode() {
  ffmpeg -v error -y -i "$1" -frames:v 1 -fflags +bitexact -compression_level 9 -pred mixed \
    -vf "scale=iw:ih:flags=$EXACT,format=rgb24,${4:+$4,}tile=${3:-$FRAMES}x1" "$2"
}

from_source "scale=out_color_matrix=bt709,format=yuv420p" $X264 -bf 3 -g 6 $TAG709 h264_709.mp4
from_source "scale=out_color_matrix=bt601,format=yuv420p" $X264 -bf 3 -g 6 $TAG601 \
  -movflags +faststart h264_601.mp4
from_source "format=yuvj420p" $X264 h264_full_range.mp4
from_source "format=yuv420p10le" $X264 h264_10bit.mp4
from_source "scale=47:31,format=yuv444p" $X264 h264_odd.mp4
from_source "format=yuv420p,setsar=4/3" $X264 h264_anamorphic.mp4
from_source "format=yuv420p" -c:v libvpx -b:v 300k vp8.webm
from_source "format=yuv420p" -c:v libvpx-vp9 -b:v 300k vp9.webm
from_source "format=yuv420p" -c:v libaom-av1 -cpu-used 6 -crf 30 av1.mp4
encode -i h264_709.mp4 -c copy h264.mkv
for clip in h264_709.mp4 h264_601.mp4 h264_full_range.mp4 h264_10bit.mp4 h264_odd.mp4 vp8.webm \
  vp9.webm av1.mp4; do
  decode $clip "${clip%.*}.png"
done
decode h264_anamorphic.mp4 h264_anamorphic.png $FRAMES "scale=64:32:flags=bilinear+accurate_rnd"
for angle in 90 180 270; do
  encode -i h264_709.mp4 -c copy -metadata:s:v rotate=$angle turned_$angle.mov
  decode turned_$angle.mov turned_$angle.png 2
done

# Frames 0, 3, 6, 9 and 10, 11 of 24 a second.
from_source "format=yuv420p,select='not(mod(n,3))+gt(n,9)'" -vsync vfr $X264 variable.mp4
decode variable.mp4 variable.png 6

from_source "split[a][b];[a]palettegen[p];[b][p]paletteuse" animated.gif
decode animated.gif animated_gif.png
from_source "format=rgb24" -f apng -plays 0 animated.png
decode animated.png animated_png.png

# Clips that are refused.
encode -f lavfi -i "sine=duration=0.2" -c:a aac audio_only.mp4
from_source "format=yuv420p" -c:v mpeg4 mpeg4.mp4
from_source "format=yuva420p,colorchannelmixer=aa=0.5" -c:v libvpx-vp9 -b:v 300k transparent.webm
from_source "format=yuv420p10le" -c:v libx265 -x265-params log-level=none -tag:v hvc1 \
  -color_primaries bt2020 -color_trc smpte2084 -colorspace bt2020nc hdr.mp4

# Ten minutes, for memory: 3000 frames of 115 KB as RGB.
encode -f lavfi -i "color=c=teal:size=240x160:rate=5:duration=600" \
  -f lavfi -i "color=c=orange:size=40x40:rate=5:duration=600" \
  -filter_complex "overlay=x='mod(t*4,200)':y=60,format=yuv420p" \
  -c:v libx264 -preset slow -crf 34 -g 600 ten_minutes.mp4

${PYTHON:-python3} make.py
ffmpeg -version | head -n 1
