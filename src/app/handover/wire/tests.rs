use std::{
    fs,
    net::{TcpListener, TcpStream},
};

use super::*;

fn links() -> (Link, Link) {
    let (one, other) = UnixStream::pair().unwrap();
    (Link::new(one).unwrap(), Link::new(other).unwrap())
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

#[test]
fn words_and_sockets_arrive_in_order_however_they_are_cut() {
    let (mut old, mut new) = links();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let word = Word::Sockets { version: VERSION, pid: 7, names: vec![format!("tcp:{address}")] };
    old.pass(&word, &[listener.as_fd()]).unwrap();
    drop(listener);
    let begin = line(&Word::Begin).unwrap();
    for byte in begin {
        old.stream.write_all(&[byte]).unwrap();
    }
    old.say(&Word::No).unwrap();
    drop(old);
    assert_eq!(new.hear(soon()).unwrap(), Some(word));
    assert_eq!(new.hear(soon()).unwrap(), Some(Word::Begin));
    assert_eq!(new.hear(soon()).unwrap(), Some(Word::No));
    assert_eq!(new.hear(soon()).unwrap(), None);
    assert_eq!(new.sockets.len(), 1);
    assert!(TcpStream::connect(address).is_ok(), "it listens in the new one's hand");
}

#[test]
fn what_is_no_word_is_an_error_and_silence_has_an_end() {
    let (mut one, mut other) = links();
    one.stream.write_all(b"{\"begin\": 1}\n").unwrap();
    assert_eq!(other.hear(soon()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    let end = Instant::now() + Duration::from_millis(20);
    assert_eq!(other.hear(end).unwrap_err().kind(), io::ErrorKind::TimedOut);
    one.stream.write_all(&vec![b'x'; LINE_MAX + 2]).unwrap();
    assert!(other.hear(soon()).unwrap_err().to_string().contains("does not end"));
    let (names, many) = (Vec::new(), TcpListener::bind("127.0.0.1:0").unwrap());
    let many = vec![many.as_fd(); SOCKETS_MAX + 1];
    let word = Word::Sockets { version: VERSION, pid: 7, names };
    assert!(one.pass(&word, &many).unwrap_err().to_string().contains("253"));
}

/// Both sides must know the same of it: one would go on, and the other would end.
#[test]
fn a_word_is_heard_or_its_speaker_is_told_that_it_was_not() {
    let (mut old, mut new) = links();
    new.say(&Word::Serving).unwrap();
    old.stop_hearing();
    assert_eq!(old.hear(soon()).unwrap(), Some(Word::Serving), "said before");
    assert_eq!(old.hear(soon()).unwrap(), None);
    assert!(new.say(&Word::Thanks).is_err());
    old.say(&Word::No).unwrap();
    drop(old);
    assert_eq!(new.hear(soon()).unwrap(), Some(Word::No));
}

#[test]
fn a_side_is_alive_while_it_is_there_and_silent() {
    let (one, mut other) = links();
    assert!(one.is_alive());
    other.say(&Word::Thanks).unwrap();
    assert!(!one.is_alive(), "it speaks before it is asked");
    let (one, other) = links();
    drop(other);
    assert!(!one.is_alive());
}

#[test]
fn the_meeting_is_found_however_long_the_folders_path_is() {
    let folder = tempfile::tempdir().unwrap();
    let long = folder.path().join("long/".repeat(60));
    fs::create_dir_all(&long).unwrap();
    let meeting = Meeting::of(&long).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(meeting.socket()).unwrap();
    assert!(long.join("upgrade.sock").exists());
    assert!(UnixStream::connect(Meeting::of(&long).unwrap().socket()).is_ok());
}
