/**
 * Conditions for ControlNets: edges, skeletons and ready maps.
 *
 * @module
 */

export { canny, type CannyOptions } from "./canny.ts";
export { conditionFrames, type ConditionOptions } from "./condition_frames.ts";
export { type Joint, parsePoses, type Pose, type PoseClip, readPoses } from "./keypoints.ts";
export { type ConditionInfo, type ConditionKind, CONDITIONS } from "./kinds.ts";
export { type DepthBounds, depthBounds, normaliseDepth } from "./maps.ts";
export { drawPose, poseFrames } from "./pose.ts";
export type { Size } from "../picture.ts";
