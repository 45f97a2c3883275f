/**
 * What is known to go wrong with a choice of sampler and guidance, in words for the user.
 *
 * @module
 */

import {
  DDIMScheduler,
  drawsNoise,
  LCMScheduler,
  LMSDiscreteScheduler,
  PNDMScheduler,
  type Scheduler,
} from "../schedulers/mod.ts";
import type { Settled } from "./generation.ts";
import { GuidedUNet } from "./guided_unet.ts";

/** Above it, pictures of models that were distilled for LCM are burnt. */
const LCM_GUIDANCE = 2;

/** Extrapolation from four slopes overshoots where guidance makes them steep and steps are long. */
const FOURTH_ORDER_STEPS = 40;

/** Remarks that concern pictures and videos alike. */
export function samplerWarnings(settled: Settled, scheduler: Scheduler): string[] {
  const { scheduler: name, steps, eta, guidanceScale, guidanceRescale, timestepSpacing } = settled;
  const { config } = scheduler;
  const guided = GuidedUNet.needsNegative(guidanceScale);
  const fourthOrder = scheduler instanceof PNDMScheduler ||
    scheduler instanceof LMSDiscreteScheduler;
  const lcm = scheduler instanceof LCMScheduler;
  const warnings: [boolean, string][] = [
    [
      eta > 0 && !(scheduler instanceof DDIMScheduler),
      `eta is heeded by ddim alone; ${name} ignores it`,
    ],
    [
      guidanceRescale > 0 && !guided,
      "the guidance rescale does nothing without guidance; set a guidance scale above 1",
    ],
    [
      fourthOrder && guided && steps < FOURTH_ORDER_STEPS,
      `${name} with guidance may miss shapes and colours in fewer than ${FOURTH_ORDER_STEPS} steps; ` +
      `dpm++ and unipc need 20 to 25`,
    ],
    [
      lcm && guidanceScale > LCM_GUIDANCE,
      `${name} is made for models distilled for it, with guidance 1 to ${LCM_GUIDANCE} and 4 to 8 ` +
      `steps; guidance ${guidanceScale} burns their pictures`,
    ],
    [
      lcm && timestepSpacing !== undefined,
      `${name} takes its timesteps from those of its teacher; the timestep spacing is ignored`,
    ],
    [
      config.rescale_betas_zero_snr && config.timestep_spacing !== "trailing" && !lcm,
      `the model was trained up to pure noise, which the timestep spacing "${config.timestep_spacing}" ` +
      `does not reach; use "trailing"`,
    ],
  ];
  return warnings.filter(([applies]) => applies).map(([, text]) => text);
}

/** Remarks that concern the frames of a Text2Video-Zero clip. */
export function videoWarnings(
  { scheduler: name, eta }: Settled,
  scheduler: Scheduler,
  frames: number,
  compat: "framezero" | "diffusers" | "original",
): string[] {
  if (frames === 1) return [];
  const warnings: string[] = [];
  if (drawsNoise(scheduler, eta)) {
    const advice = scheduler instanceof DDIMScheduler ? "set eta to 0" : "ddim keeps them alike";
    warnings.push(
      `${name} draws fresh noise for each frame in every step, so frames drift apart; ${advice}`,
    );
  }
  if (compat === "diffusers" && scheduler.space === "sigma") {
    warnings.push(
      `${name} keeps latents as x + σ·noise; diffusers adds the other frames' noise by a formula ` +
        `that does not hold there, framezero by the one that does, so the numbers differ`,
    );
  }
  return warnings;
}
