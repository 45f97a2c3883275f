/**
 * The modes that the gallery shows, in the words of the command line.
 *
 * @module
 */

/** One mode. */
export interface Mode {
  /** File name of what it makes, without its ending. */
  readonly name: string;
  /** As headings have it. */
  readonly title: string;
  /** Where it is described. */
  readonly source: string;
  /** What it does. */
  readonly about: string;
  /** Arguments of the command line, without where to. */
  readonly args: readonly string[];
  /** What shows that it works, where its weights are not built in; such modes are not made. */
  readonly proof?: readonly string[];
}

const HEART = "a red heart in a green meadow";

/** Settings of the demonstration: motion of one latent cell a frame, away from the borders. */
const DEMO = ["--seed", "3", "--width", "192", "--height", "128", "--steps", "12"];
const PAN = ["--motion-x", "21.5", "--t0", "5", "--t1", "6"];

const PAPER = "Text2Video-Zero";

/** Every mode, those with built-in weights first. */
export const MODES: readonly Mode[] = [
  {
    name: "text-to-video",
    title: "Text to video",
    source: `${PAPER}, Algorithm 1`,
    about:
      "Frame zero is denoised to T0; the others are its latents, moved and noised again; from " +
      "T1 all are denoised together and attend to frame zero.",
    args: [HEART, ...DEMO, ...PAN],
  },
  {
    name: "no-cross-frame",
    title: "Ablation: no cross-frame attention",
    source: `${PAPER}, §4.4`,
    about:
      "The same latents, but every frame attends to itself only: the heart is another one in " +
      "every frame.",
    args: [HEART, ...DEMO, ...PAN, "--no-cross-frame"],
  },
  {
    name: "no-motion",
    title: "Ablation: no motion in the latent codes",
    source: `${PAPER}, §4.4`,
    about: "Cross-frame attention alone keeps the look; nothing moves on purpose.",
    args: [HEART, ...DEMO, "--t0", "5", "--t1", "6", "--no-motion"],
  },
  {
    name: "smoothing",
    title: "Background smoothing",
    source: `${PAPER}, §3.4`,
    about:
      "The word's own cross-attention makes the mask; behind it, the latents at T1 are drawn " +
      "towards those of frame zero, moved along: the clouds stay the same clouds.",
    args: [
      "a blue circle in the sky",
      ...["--subject", "circle", "--seed", "2", "--frames", "4", "--width", "192"],
      ...["--height", "128", "--steps", "12", "--t0", "4", "--t1", "7", "--motion-x", "21.5"],
      ...["--motion-y", "0"],
    ],
  },
  {
    name: "start-image",
    title: "From a picture",
    source: "DDIM inversion, arXiv:2010.02502 §4.3",
    about: "Frame zero is a picture: its inversion gives the latents at T0 and T1.",
    args: [
      "a red heart in a green meadow",
      "--init",
      "docs/start.png",
      "--frames",
      "4",
      "--steps",
      "25",
    ],
  },
  {
    name: "chunks",
    title: "The original code's long videos",
    source: "Model.inference of the authors' code",
    about: "Chunks that each begin with the anchor again and repeat the noise, as compatibility: " +
      "our own form needs no chunks.",
    args: [HEART, ...DEMO, ...PAN, "--frames", "7", "--chunk-size", "4"],
  },
  {
    name: "attention-window",
    title: "Attention to a window of frames",
    source: "Tune-A-Video, arXiv:2212.11565 §3.2, widened",
    about: "Frames attend to frame zero, the one before, and themselves.",
    args: [HEART, ...DEMO, ...PAN, "--attention", "window"],
  },
  {
    name: "orbit",
    title: "Motion in words: an orbit that closes",
    source: "docs/motion.md",
    about: "The camera goes round; between latent cells, with the variance of the noise kept.",
    args: [
      "a yellow star on a blue background",
      ...["--motion", "orbit 48", "--frames", "12", "--seed", "27", "--fps", "8"],
    ],
  },
  {
    name: "zoom",
    title: "Motion in words: zoom",
    source: "docs/motion.md",
    about: "The camera comes nearer, as far as the bound.",
    args: [HEART, "--motion", "zoom 1.06 once", "--frames", "8", "--seed", "11", "--fps", "6"],
  },
  {
    name: "ping-pong",
    title: "Motion in words: there and back, twice as many frames",
    source: "docs/motion.md",
    about: "A loop; every second frame is one between two others, at half of the motion.",
    args: [
      HEART,
      ...DEMO,
      ...["--t0", "5", "--t1", "6", "--motion", "pan 20 0 ping-pong ease"],
      ...["--frames", "6", "--double"],
    ],
  },
  {
    name: "prompt-travel",
    title: "A prompt that changes",
    source: "docs/motion.md",
    about: "Between two prompts the texts are interpolated on the sphere, token by token.",
    args: [
      HEART,
      ...["--prompt-at", "7: a blue heart in a green meadow", "--attention", "window"],
      ...["--frames", "8", "--steps", "12", "--seed", "3"],
    ],
  },
  {
    name: "image",
    title: "Text to image",
    source: "Stable Diffusion",
    about: "Frame zero, denoised to the end.",
    args: ["image", "a yellow star on a black background", "--seed", "1"],
  },
  {
    name: "canny",
    title: "Conditions: Canny edges of a clip",
    source: `${PAPER}, §4.2`,
    about: "What a ControlNet would be shown of the first clip on this page: edges by kernels of " +
      "our own, equal to OpenCV's.",
    args: ["condition", "canny:{text-to-video}", "--width", "192", "--height", "128"],
  },
  {
    name: "control",
    title: "Control by edges, poses, depth",
    source: `${PAPER}, §4.2; ControlNet, arXiv:2302.05543`,
    about: "All frames begin with one noise and follow their maps; cross-frame attention in UNet " +
      "and ControlNet.",
    args: [
      "oil painting of a girl dancing",
      ...["--control", "canny:girl.mp4", "--model", "stable-diffusion-v1-5/stable-diffusion-v1-5"],
    ],
    proof: [
      "bench/parity.ts --filter controlnet: every residual of a ControlNet, the UNet that takes " +
      "them in, guess mode, and a whole controlled clip of the authors' code",
      "tests/controlnet_test.ts, tests/controlled_video_test.ts, tests/controls_cli_test.ts: tiny " +
      "random nets, several at once, scales, start and end, both naming schemes",
      "tests/canny_test.ts: edges equal to OpenCV's, 0 pixels different in 18 maps",
    ],
  },
  {
    name: "dreambooth",
    title: "Control with a DreamBooth or style model",
    source: `${PAPER}, §4.2`,
    about: "The ControlNet's weights move over to the tuned model while they are read: " +
      "w + (style − base).",
    args: [
      "arcane style, a man dancing",
      ...["--control", "pose:dance/", "--model", "someone/an-arcane-style-model"],
      ...["--transfer-from", "stable-diffusion-v1-5/stable-diffusion-v1-5"],
    ],
    proof: ["tests/controlnet_test.ts: every transferred weight against the formula in float64"],
  },
  {
    name: "edit",
    title: "Video Instruct-Pix2Pix",
    source: `${PAPER}, §3.4; InstructPix2Pix, arXiv:2211.09800`,
    about: "A video changed as an instruction says: three guidance rows a frame, cross-frame " +
      "attention, one noise for all frames.",
    args: [
      "edit",
      "make it winter",
      "--video",
      "street.mp4",
      "--model",
      "timbrooks/instruct-pix2pix",
    ],
    proof: [
      "bench/parity.ts --filter ip2p: the 8-channel UNet, alone and with cross-frame attention",
      "bench/parity.ts --filter orig_instruct_pix2pix: a whole clip of the authors' code",
      "tests/instruct_pix2pix_test.ts: identities of the guidance, shared and independent noise",
    ],
  },
];
