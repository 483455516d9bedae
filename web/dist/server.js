export class LikeButton {
  static strings = {};
}
